#include "cli/simulate_sweep.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstdlib>

#include "cli/arguments.h"
#include "cli/simulate_flags.h"
#include "flashloom/io/atomic_file.h"
#include "flashloom/systolic/baseline/plain_array.h"
#include "flashloom/systolic/machine/machine_keys.h"
#include "flashloom/systolic/report/picture.h"

namespace flashloom::cli {
namespace {

int whole(const std::string& name, const std::string& text) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    throw UsageError(fmt::format("--sweep {}: expected a whole number, got {}", name, text));
  }
  return value;
}

void apply(SweepPoint& point, const std::string& name, const std::string& value) {
  if (name == "array") {
    set_array(point.machine, value);
  } else if (name == "seq") {
    point.problem.queries = whole(name, value);
  } else if (name == "keys") {
    point.problem.keys = whole(name, value);
  } else if (name == "heads") {
    point.problem.heads = whole(name, value);
  } else if (name == "kv-heads") {
    point.problem.key_heads = whole(name, value);
  } else if (name == "causal") {
    point.problem.causal = whole(name, value) != 0;
  } else if (name == "lanes") {
    point.lanes = std::max(1, whole(name, value));
  } else if (name == "head-dim") {
    point.problem.head_dim = whole(name, value);
  } else if (name == "value-dim") {
    point.problem.value_dim = whole(name, value);
  } else if (name == "formats") {
    const size_t slash = value.find('/');
    if (slash == std::string::npos) {
      throw UsageError("--sweep formats: expected ELEMENT/SUM such as bf16/fp32, got " + value);
    }
    systolic::set_machine_value(point.machine, "element", value.substr(0, slash));
    systolic::set_machine_value(point.machine, "accumulator", value.substr(slash + 1));
  } else {
    systolic::set_machine_value(point.machine, name, value);
  }
}

// A place on the plot's axis; what is no number (8x16, fp16/fp32) has that of its turn.
double as_number(const std::string& text, size_t index) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  return *end != '\0' ? static_cast<double>(index) : value;
}

}  // namespace

SweepAxis parse_axis(const std::string& text) {
  const size_t equals = text.find('=');
  SweepAxis axis{.name = text.substr(0, equals)};
  constexpr const char* kOthers[] = {"array",    "seq",       "keys",   "heads", "kv-heads",
                                     "head-dim", "value-dim", "causal", "lanes", "formats"};
  bool known = systolic::find_machine_key(axis.name) != nullptr;
  for (const char* other : kOthers) {
    known = known || axis.name == other;
  }
  if (!known || equals == std::string::npos) {
    throw UsageError(
        fmt::format("--sweep: expected NAME=VALUE:VALUE:… with a machine's parameter or {}, got {}",
                    fmt::join(kOthers, ", "), text));
  }
  std::string rest = text.substr(equals + 1);
  while (!rest.empty()) {
    const size_t end = std::min(rest.find(':'), rest.size());
    axis.values.push_back(rest.substr(0, end));
    rest.erase(0, end + 1);
  }
  if (axis.values.empty()) {
    throw UsageError("--sweep " + axis.name + ": expected at least one value");
  }
  return axis;
}

namespace {

// A point with its place on the plot and its values as the CSV has them.
struct NamedPoint {
  SweepPoint point;
  std::string cells;
  std::string series;
  double x = 0;
};

NamedPoint make_point(const SweepPoint& base, const std::vector<SweepAxis>& axes, size_t number) {
  NamedPoint named{.point = base};
  for (size_t a = 0; a < axes.size(); ++a) {
    const SweepAxis& axis = axes[a];
    const size_t choice = number % axis.values.size();
    const std::string& value = axis.values[choice];
    number /= axis.values.size();
    apply(named.point, axis.name, value);
    named.cells += value + ",";
    if (a == 0) {
      named.x = as_number(value, choice);
    } else {
      named.series += fmt::format("{}{} {}", named.series.empty() ? "" : ", ", axis.name, value);
    }
  }
  systolic::checked_problem(named.point.machine, named.point.problem);
  return named;
}

std::string csv_line(const systolic::Simulation& run, const SweepPoint& point) {
  const systolic::PlainArrayRun plain =
      systolic::run_plain_array(run.config, run.problem, {.vector_lanes = point.lanes});
  std::string line =
      fmt::format("{},{:.6f},{:.6f},{},{:.3f},{:.6f},", run.schedule.cycles, run.utilisation(),
                  run.issued_utilisation(), run.period(), run.bytes_per_cycle(), plain.utilisation);
  if (run.errors.rows > 0) {
    line += fmt::format("{:.6g},{:.6g}", run.errors.largest, run.errors.mean);
  } else {
    line += ",";
  }
  return line + "\n";
}

}  // namespace

void run_sweep(const SweepPoint& base, const systolic::SimulationOptions& options,
               const std::vector<SweepAxis>& axes, const std::string& prefix,
               FunctionRef<void(const std::string&)> progress) {
  std::string csv;
  size_t runs = 1;
  for (const SweepAxis& axis : axes) {
    csv += axis.name + ",";
    runs *= axis.values.size();
  }
  csv +=
      "cycles,utilisation,utilisation_issued,period,bytes_per_cycle,plain_utilisation,"
      "max_error,mean_error\n";
  std::vector<NamedPoint> points;
  points.reserve(runs);
  for (size_t number = 0; number < runs; ++number) {
    points.push_back(make_point(base, axes, number));
  }
  std::vector<systolic::PlotSeries> lines;
  for (size_t number = 0; number < runs; ++number) {
    const NamedPoint& named = points[number];
    progress(fmt::format("run {} of {}", number + 1, runs));
    const systolic::Simulation done =
        systolic::simulate(named.point.machine, named.point.problem, options);
    csv += named.cells + csv_line(done, named.point);
    const std::string name = named.series.empty() ? "utilisation" : named.series;
    auto line = std::ranges::find(lines, name, &systolic::PlotSeries::name);
    if (line == lines.end()) {
      line = lines.insert(line, {.name = name, .points = {}});
    }
    line->points.emplace_back(named.x, done.utilisation());
  }
  write_file_atomically(prefix + ".csv", csv);
  write_file_atomically(prefix + ".svg",
                        systolic::line_plot("Utilisation over " + axes.front().name,
                                            axes.front().name, "utilisation", lines));
}

}  // namespace flashloom::cli
