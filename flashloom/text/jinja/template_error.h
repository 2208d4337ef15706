#pragma once

#include <string>
#include <string_view>

#include "flashloom/core/error.h"

namespace flashloom::jinja {

/// A template that cannot be parsed or rendered: outside the subset, wrong in itself, refusing the
/// conversation (`raise_exception`), or over a limit. The message begins "chat template, line N: ".
class TemplateError : public Error {
 public:
  TemplateError(int line, std::string_view what)
      : Error("chat template, line " + std::to_string(line) + ": " + std::string(what)) {}
};

/// Raised where the line is not known (values, filters, methods); the interpreter adds it.
class ValueError : public Error {
 public:
  using Error::Error;
};

}  // namespace flashloom::jinja
