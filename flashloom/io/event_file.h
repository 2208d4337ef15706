#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

namespace flashloom {

/// One curve's value, by the curve's name ("loss/train"; TensorBoard groups by what stands before
/// the slash).
struct EventScalar {
  std::string_view tag;
  double value;  // stored as float32, as TensorBoard has it
};

/// A TensorBoard event file: TFRecords (length, masked CRC-32C, data, masked CRC-32C) of `Event`
/// messages (tensorflow/core/util/event.proto). An event is one write, so a reader of a running job
/// meets at most one unfinished record, which it retries. Every function throws IoError.
class EventFile {
 public:
  /// Makes a file of a name of its own in `directory`, which is made if missing. Of the files that
  /// were there before, TensorBoard drops what lies at `first_step` and beyond: a run that goes on
  /// writes those steps again. `wall_time` in seconds since 1970.
  EventFile(const std::string& directory, int64_t first_step, double wall_time);
  ~EventFile();
  EventFile(const EventFile&) = delete;
  EventFile& operator=(const EventFile&) = delete;

  void add(int64_t step, double wall_time, std::span<const EventScalar> scalars);

  void add(int64_t step, double wall_time, std::initializer_list<EventScalar> scalars) {
    add(step, wall_time, std::span(scalars.begin(), scalars.size()));
  }

  const std::string& path() const { return path_; }

 private:
  void append(std::string_view event);

  std::string path_;
  int descriptor_ = -1;
};

}  // namespace flashloom
