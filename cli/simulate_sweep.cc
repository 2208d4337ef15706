#include "cli/simulate_sweep.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdlib>
#include <map>

#include "cli/arguments.h"
#include "cli/simulate_flags.h"
#include "flashloom/io/atomic_file.h"
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

struct SweepPoint {
  systolic::MachineConfig machine;
  systolic::AttentionProblem problem;
};

void apply(SweepPoint& point, const std::string& name, const std::string& value) {
  if (name == "array") {
    set_array(point.machine, value);
  } else if (name == "seq") {
    point.problem.queries = whole(name, value);
  } else if (name == "keys") {
    point.problem.keys = whole(name, value);
  } else if (name == "heads") {
    point.problem.heads = whole(name, value);
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
  constexpr const char* kOthers[] = {"array",    "seq",       "keys",   "heads",
                                     "head-dim", "value-dim", "formats"};
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

void run_sweep(const systolic::MachineConfig& machine, const systolic::AttentionProblem& problem,
               const systolic::SimulationOptions& options, const std::vector<SweepAxis>& axes,
               const std::string& prefix, FunctionRef<void(const std::string&)> progress) {
  std::string csv;
  size_t runs = 1;
  for (const SweepAxis& axis : axes) {
    csv += axis.name + ",";
    runs *= axis.values.size();
  }
  csv += "cycles,utilisation,period,bytes_per_cycle,max_error,mean_error\n";
  std::map<std::string, systolic::PlotSeries> series;
  for (size_t run = 0; run < runs; ++run) {
    SweepPoint point{.machine = machine, .problem = problem};
    std::string label;
    size_t rest = run;
    double x = 0;
    for (size_t a = 0; a < axes.size(); ++a) {
      const SweepAxis& axis = axes[a];
      const size_t choice = rest % axis.values.size();
      const std::string& value = axis.values[choice];
      rest /= axis.values.size();
      apply(point, axis.name, value);
      csv += value + ",";
      if (a == 0) {
        x = as_number(value, choice);
      } else {
        label += fmt::format("{}{} {}", label.empty() ? "" : ", ", axis.name, value);
      }
    }
    progress(fmt::format("run {} of {}", run + 1, runs));
    const systolic::Simulation done = systolic::simulate(point.machine, point.problem, options);
    const double utilisation = done.utilisation();
    csv += fmt::format("{},{:.6f},{},{:.3f},", done.schedule.cycles, utilisation, done.period(),
                       done.bytes_per_cycle());
    csv += done.errors.rows > 0
               ? fmt::format("{:.6g},{:.6g}\n", done.errors.largest, done.errors.mean)
               : std::string(",\n");
    systolic::PlotSeries& line = series[label];
    line.name = label.empty() ? "utilisation" : label;
    line.points.emplace_back(x, utilisation);
  }
  std::vector<systolic::PlotSeries> lines;
  lines.reserve(series.size());
  for (auto& [label, line] : series) {
    lines.push_back(std::move(line));
  }
  write_file_atomically(prefix + ".csv", csv);
  write_file_atomically(prefix + ".svg",
                        systolic::line_plot("Utilisation over " + axes.front().name,
                                            axes.front().name, "utilisation", lines));
}

}  // namespace flashloom::cli
