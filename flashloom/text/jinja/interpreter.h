#pragma once

#include <ctime>
#include <string>
#include <utility>
#include <vector>

#include "flashloom/text/jinja/syntax.h"
#include "flashloom/text/jinja/value.h"

namespace flashloom::jinja {

struct RenderOptions {
  /// The variables that the template sees.
  std::vector<std::pair<std::string, Value>> variables;
  /// What strftime_now formats.
  std::tm now = {};
  /// See Budget.
  int64_t work_limit = int64_t{32} << 20;
};

/// Renders a parsed template. Throws TemplateError naming a line.
std::string render(const Body& body, const RenderOptions& options);

}  // namespace flashloom::jinja
