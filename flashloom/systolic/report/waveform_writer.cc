#include "flashloom/systolic/report/waveform_writer.h"

#include <fmt/format.h>

#include <algorithm>

#include "flashloom/core/error.h"

namespace flashloom::systolic {
namespace {

constexpr int kMostBits = 64;

}  // namespace

size_t WaveformWriter::declare(std::string_view name, int width) {
  if (begun_) {
    throw InvalidArgument("waveform", "signal", "every signal before the first tick's end",
                          std::string(name));
  }
  const size_t dot = name.find('.');
  const bool has_scope = dot != std::string_view::npos;
  const std::string_view scope = has_scope ? name.substr(0, dot) : std::string_view();
  const std::string_view own = has_scope ? name.substr(dot + 1) : name;
  const bool is_named = !own.empty() && own.find('.') == std::string_view::npos && dot != 0;
  if (!is_named || width < 1 || width > kMostBits) {
    throw InvalidArgument("waveform", "signal", "NAME or SCOPE.NAME and from 1 to 64 bits",
                          fmt::format("'{}' of {} bits", name, width));
  }
  signals_.push_back({.scope = std::string(scope), .name = std::string(own), .width = width});
  next_.push_back(0);
  return signals_.size() - 1;
}

void WaveformWriter::set(int64_t time, size_t signal, uint64_t value) {
  if (signal >= signals_.size()) {
    throw InvalidArgument("waveform", "signal", fmt::format("below {}", signals_.size()),
                          std::to_string(signal));
  }
  const int width = signals_[signal].width;
  if (width < kMostBits && (value >> width) != 0) {
    throw InvalidArgument("waveform", signals_[signal].name, fmt::format("{} bits", width),
                          std::to_string(value));
  }
  if (time < time_) {
    throw InvalidArgument("waveform", "time", fmt::format("{} or later", time_),
                          std::to_string(time));
  }
  if (time > time_) {
    write_changes();
    time_ = time;
  }
  if (next_[signal] != value) {
    next_[signal] = value;
    touched_.push_back(signal);
  }
}

void WaveformWriter::finish(int64_t end) {
  if (end < std::max<int64_t>(time_, 1) || signals_.empty()) {
    throw InvalidArgument(
        "waveform", "end",
        fmt::format("at least one signal and tick {} or later", std::max<int64_t>(time_, 1)),
        fmt::format("{} signals and tick {}", signals_.size(), end));
  }
  write_changes();
  if (end > time_) {
    time_ = end;
    write_time(end);
  }
  write_end(end);
}

void WaveformWriter::walk(FunctionRef<void(const std::string& scope)> enter,
                          FunctionRef<void(const Signal& signal)> visit,
                          FunctionRef<void()> leave) const {
  std::string scope;
  for (const Signal& signal : signals_) {
    if (signal.scope != scope) {
      if (!scope.empty()) {
        leave();
      }
      scope = signal.scope;
      if (!scope.empty()) {
        enter(scope);
      }
    }
    visit(signal);
  }
  if (!scope.empty()) {
    leave();
  }
}

void WaveformWriter::write_changes() {
  if (!begun_) {
    begun_ = true;
    write_header();
    write_time(time_);
    for (size_t i = 0; i < signals_.size(); ++i) {
      signals_[i].value = next_[i];
      write_value(i, next_[i]);
    }
    touched_.clear();
    return;
  }
  bool is_time_written = false;
  for (const size_t i : touched_) {
    // A value may have changed and come back, or be in the list twice.
    if (next_[i] == signals_[i].value) {
      continue;
    }
    if (!is_time_written) {
      write_time(time_);
      is_time_written = true;
    }
    signals_[i].value = next_[i];
    write_value(i, next_[i]);
  }
  touched_.clear();
}

}  // namespace flashloom::systolic
