#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "flashloom/json/json.h"

namespace flashloom {

/// A metric of a run by step, in the order of its log. Values that are not finite are NaN.
struct MetricCurve {
  std::string name;
  std::vector<int32_t> steps;
  std::vector<float> values;
};

/// What a guard said.
struct GuardLine {
  int64_t step = 0;
  std::string guard, finding;
};

/// What a run's directory says of it, read without the model. Runs of older versions and runs that
/// were cut short lack parts.
struct RunFolder {
  std::string path;
  std::string name;  // the last part of the path, made unique by its caller if need be
  Json run, facts;   // run.json and facts.json; null where there is none
  std::vector<MetricCurve> curves;
  std::vector<GuardLine> guards;

  /// Null if the run has no such curve.
  const MetricCurve* curve(std::string_view curve_name) const;
};

/// Reads run.json, facts.json and metrics.jsonl of a directory. An unfinished last line of a log,
/// as a running job may leave, is passed over. Throws IoError naming file and line for what is
/// damaged, and if there is neither a log nor a run.json.
RunFolder read_run_folder(const std::string& path);

}  // namespace flashloom
