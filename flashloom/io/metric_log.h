#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <variant>

namespace flashloom {

/// One named value of a log line. NaN and infinities, for which JSON has no number, become strings.
struct Metric {
  std::string_view name;
  std::variant<bool, int64_t, double, std::string_view> value;
};

/// Appends lines of JSON to a file, one object a line, each line in one write, so that a reader
/// sees whole lines and a crash loses none that was appended. An unfinished last line, left by a
/// machine that stopped, is cut off on opening. Every function throws IoError.
class MetricLog {
 public:
  explicit MetricLog(std::string path);
  ~MetricLog();
  MetricLog(const MetricLog&) = delete;
  MetricLog& operator=(const MetricLog&) = delete;

  void append(std::span<const Metric> metrics);

  void append(std::initializer_list<Metric> metrics) {
    append(std::span(metrics.begin(), metrics.size()));
  }

  const std::string& path() const { return path_; }

 private:
  std::string path_;
  int descriptor_ = -1;
};

/// Drops the lines of a log whose "step" lies beyond `step`: a run that goes on from there writes
/// them again. A missing file stays missing. Throws IoError naming a line that is not an object.
void cut_metric_log(const std::string& path, int64_t step);

}  // namespace flashloom
