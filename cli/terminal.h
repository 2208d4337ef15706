#pragma once

#include <chrono>
#include <string>
#include <string_view>

namespace flashloom::cli {

/// A line on standard error that is rewritten in place on a terminal, and printed every few seconds
/// elsewhere (a log, a pipe).
class StatusLine {
 public:
  /// Shows `text`; `last` ends the line.
  void show(std::string_view text, bool last = false);

  /// Ends the line, so that something else can be printed.
  void end();

 private:
  bool open_ = false;
  std::chrono::steady_clock::time_point printed_ = {};
};

/// One line on standard error.
void note(std::string_view text);

/// Whether nothing of this file prints: of several ranks one speaks.
void set_quiet(bool quiet);

}  // namespace flashloom::cli
