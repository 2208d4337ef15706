#pragma once

#include <span>
#include <string>
#include <vector>

#include "flashloom/json/json.h"
#include "flashloom/train/report/run_folder.h"

namespace flashloom {

/// One name with each run's value; null where a run does not know it.
struct ComparedValue {
  std::string name;
  std::vector<Json> values;
  int best = -1;  // the run of the best value, where better is meaningful and one alone is best
};

/// What differed between runs. Settings and data list what is not the same everywhere; the outcome
/// is listed whole.
struct RunComparison {
  std::vector<std::string> names;  // of the runs, each once
  std::vector<ComparedValue> settings, data, outcome;
};

/// Names the runs by as much of their paths as tells them apart, in `runs` too. Throws
/// InvalidArgument for less than two runs.
RunComparison compare_runs(std::span<RunFolder> runs);

/// Values as people read them, a column a run.
std::string describe(const RunComparison& comparison);

/// {"runs": [...], "settings": [{"name", "values", "best"}], "data": …, "outcome": …}
Json to_json(const RunComparison& comparison);

/// The same with every value as text, with its unit, for the page.
Json to_readable_json(const RunComparison& comparison);

}  // namespace flashloom
