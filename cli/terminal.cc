#include "cli/terminal.h"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

namespace flashloom::cli {
namespace {

bool is_quiet = false;

}  // namespace

void set_quiet(bool quiet) {
  is_quiet = quiet;
}

void StatusLine::show(std::string_view text, bool last) {
  if (is_quiet) {
    return;
  }
  static const bool terminal = isatty(STDERR_FILENO) != 0;
  const auto now = std::chrono::steady_clock::now();
  if (terminal) {
    fmt::print(stderr, "\r\033[K{}{}", text, last ? "\n" : "");
    std::fflush(stderr);
    open_ = !last;
  } else if (last || now - printed_ >= std::chrono::seconds(5)) {
    fmt::print(stderr, "{}\n", text);
    printed_ = now;
  }
}

void StatusLine::end() {
  if (open_) {
    fmt::print(stderr, "\n");
    open_ = false;
  }
}

void note(std::string_view text) {
  if (is_quiet) {
    return;
  }
  fmt::print(stderr, "{}\n", text);
}

}  // namespace flashloom::cli
