#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flashloom/core/function_ref.h"

namespace flashloom::systolic {

/// Where the bytes of a file go. Both functions throw what says why the file cannot take them.
class ByteSink {
 public:
  virtual ~ByteSink() = default;
  virtual void append(std::string_view bytes) = 0;
  /// Replaces bytes that were appended before.
  virtual void overwrite(int64_t offset, std::string_view bytes) = 0;
};

/// Signals and their values in order of time, for a viewer of waveforms: declare() every signal,
/// set() values, finish(). Formats are VcdWriter and FstWriter; neither holds the waveform in
/// memory. All throw InvalidArgument for what a waveform cannot hold, and what their ByteSink
/// throws.
class WaveformWriter {
 public:
  virtual ~WaveformWriter() = default;

  /// "name", or "scope.name" in a scope of its own below the machine's; 1 to 64 bits, 0 until set.
  /// Returns the signal's number. Not after the first tick.
  size_t declare(std::string_view name, int width);

  /// The signal's value from this tick on. Ticks begin with 0 and never go back; of several values
  /// of one tick the last counts.
  void set(int64_t time, size_t signal, uint64_t value);

  /// The waveform ends at this tick, later than 0.
  void finish(int64_t end);

 protected:
  struct Signal {
    std::string scope;  // empty: the machine's
    std::string name;
    int width;
    uint64_t value = 0;  // as written
  };

  std::span<const Signal> signals() const { return signals_; }

  /// Every signal in order, with the scopes around them: neighbours of one scope share it.
  void walk(FunctionRef<void(const std::string& scope)> enter,
            FunctionRef<void(const Signal& signal)> visit, FunctionRef<void()> leave) const;

 private:
  /// Once, when all signals are declared.
  virtual void write_header() = 0;
  /// Ticks grow; the first is 0 and has a value of every signal, others those that changed.
  virtual void write_time(int64_t time) = 0;
  virtual void write_value(size_t signal, uint64_t value) = 0;
  virtual void write_end(int64_t end) = 0;

  void write_changes();

  std::vector<Signal> signals_;
  std::vector<uint64_t> next_;   // values at time_
  std::vector<size_t> touched_;  // signals whose next_ may differ from what is written
  int64_t time_ = 0;
  bool begun_ = false;
};

}  // namespace flashloom::systolic
