#include "flashloom/core/progress.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <cstdlib>

#include "flashloom/core/error.h"

namespace flashloom {
namespace {

double seconds_between(Progress::Clock::time_point from, Progress::Clock::time_point to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

Progress::Progress(int64_t total, int64_t done, Clock::time_point now)
    : total_(total), start_{done, now}, middle_(start_), recent_(start_), now_(start_) {}

void Progress::advance(int64_t done, Clock::time_point now) {
  now_ = {done, now};
  // `middle_` trails by between an eighth and a quarter of the work done so far.
  const int64_t behind = std::max<int64_t>(1, (now_.done - start_.done) / 8);
  if (now_.done - recent_.done >= behind) {
    middle_ = recent_;
    recent_ = now_;
  }
}

double Progress::elapsed_seconds() const {
  return seconds_between(start_.time, now_.time);
}

double Progress::remaining_seconds() const {
  const int64_t done = now_.done - middle_.done;
  if (done <= 0) {
    return -1;
  }
  return seconds_between(middle_.time, now_.time) / static_cast<double>(done) *
         static_cast<double>(total_ - now_.done);
}

std::string Progress::line() const {
  const double left = remaining_seconds();
  return fmt::format("{}/{} · {} · {}", now_.done, total_, format_duration(elapsed_seconds()),
                     left < 0 ? "estimating" : format_duration(left) + " left");
}

std::string format_duration(double seconds) {
  const auto whole = static_cast<int64_t>(std::llround(std::max(0.0, seconds)));
  if (whole >= 3600) {
    return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
  }
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

std::string format_bytes(int64_t bytes) {
  constexpr const char* kUnits[] = {"B", "kB", "MB", "GB", "TB", "PB", "EB"};
  auto value = static_cast<double>(bytes);
  int unit = 0;
  while (value >= 999.5 && unit < 6) {
    value /= 1000;
    ++unit;
  }
  if (unit == 0) {
    return fmt::format("{} B", bytes);
  }
  return fmt::format("{:.{}f} {}", value, value < 9.95 ? 1 : 0, kUnits[unit]);
}

int64_t parse_bytes(std::string_view text) {
  struct Unit {
    std::string_view name;
    double bytes;
  };

  constexpr std::array<Unit, 12> kUnits = {{{"", 1},
                                            {"B", 1},
                                            {"KB", 1e3},
                                            {"MB", 1e6},
                                            {"GB", 1e9},
                                            {"TB", 1e12},
                                            {"KIB", 0x1p10},
                                            {"MIB", 0x1p20},
                                            {"GIB", 0x1p30},
                                            {"TIB", 0x1p40},
                                            {"M", 1e6},
                                            {"G", 1e9}}};
  const std::string number(text);
  char* end = nullptr;
  const double value = std::strtod(number.c_str(), &end);
  std::string unit(end);
  unit.erase(std::remove(unit.begin(), unit.end(), ' '), unit.end());
  std::transform(unit.begin(), unit.end(), unit.begin(),
                 [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
  for (const Unit& known : kUnits) {
    const double bytes = value * known.bytes;
    if (end != number.c_str() && unit == known.name && bytes >= 1 && bytes < 0x1p62) {
      return static_cast<int64_t>(bytes);
    }
  }
  throw InvalidArgument("parse_bytes", "text", "a number of bytes such as 8GB or 512MiB",
                        fmt::format("\"{}\"", text));
}

}  // namespace flashloom
