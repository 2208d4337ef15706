#include "flashloom/systolic/report/simulation.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <vector>

#include "flashloom/core/parallel.h"
#include "flashloom/core/philox.h"
#include "flashloom/systolic/array/collapsed_run.h"
#include "flashloom/systolic/engine/engine.h"
#include "flashloom/systolic/program/flash_attention.h"

namespace flashloom::systolic {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

SimulationErrors errors_of(const Simulation& simulation, const AttentionData& data,
                           const MainMemory& memory, const SimulationOptions& options) {
  const AttentionProblem& problem = simulation.problem;
  const AttentionReference reference(simulation.config, problem, data);

  struct Sum {
    double largest = 0;
    double absolute = 0;
    double square = 0;
    int64_t not_numbers = 0;
  };

  std::vector<Sum> sums(static_cast<size_t>(options.checked_rows));
  RandomSequence random(options.seed, RandomStream::probe);
  std::vector<std::pair<int, int>> rows;
  for (int i = 0; i < options.checked_rows; ++i) {
    const auto head = static_cast<int>(random.below(static_cast<uint32_t>(problem.heads)));
    rows.emplace_back(head, static_cast<int>(random.below(static_cast<uint32_t>(problem.queries))));
  }
  parallel_for(options.checked_rows, [&](int64_t i) {
    const auto [head, query] = rows[static_cast<size_t>(i)];
    const auto row = read_output(simulation.config, problem, memory, head, query);
    const auto exact = reference.row(head, query);
    Sum& sum = sums[static_cast<size_t>(i)];
    for (size_t e = 0; e < row.size(); ++e) {
      const double error = std::abs(row[e] - exact[e]);
      if (std::isnan(error)) {
        sum.not_numbers += std::isnan(row[e]) && !std::isnan(exact[e]) ? 1 : 0;
        continue;
      }
      sum.largest = std::max(sum.largest, error);
      sum.absolute += error;
      sum.square += error * error;
    }
  });
  SimulationErrors errors{.rows = options.checked_rows};
  for (const Sum& sum : sums) {
    errors.largest = std::max(errors.largest, sum.largest);
    errors.mean += sum.absolute;
    errors.root_mean_square += sum.square;
    errors.not_numbers += sum.not_numbers;
  }
  const double count = static_cast<double>(errors.rows) * problem.value_dim;
  errors.mean /= count;
  errors.root_mean_square = std::sqrt(errors.root_mean_square / count);
  return errors;
}

}  // namespace

int64_t Simulation::issued_tiles() const {
  int64_t tiles = 0;
  for (int block = 0; block < tiling.query_blocks; ++block) {
    tiles += tiling.visited(problem, block);
  }
  return tiles * tiling.groups;
}

int Simulation::period() const {
  return iteration_period(config.shape, config.controller.slots, tiling.value_blocks);
}

double Simulation::visible_pairs() const {
  const double queries = problem.queries;
  const double all = queries * problem.keys;
  return problem.heads * (problem.causal ? all - queries * (queries - 1) / 2 : all);
}

double Simulation::useful_flops() const {
  return 2 * visible_pairs() * (problem.head_dim + problem.value_dim);
}

double Simulation::peak_flops() const {
  return 2.0 * config.shape.rows * config.shape.columns * static_cast<double>(schedule.cycles);
}

double Simulation::issued_utilisation() const {
  const double rows = config.shape.rows;
  const double products = 1 + tiling.value_blocks;  // scores, and each block of value columns
  return 2 * products * rows * rows * config.shape.columns * static_cast<double>(issued_tiles()) /
         peak_flops();
}

double Simulation::bytes_per_cycle() const {
  return static_cast<double>(schedule.bytes_read + schedule.bytes_written) /
         static_cast<double>(schedule.cycles);
}

double Simulation::pe_cycles_per_second() const {
  return peak_flops() / 2 / (engine_seconds + value_seconds);
}

Simulation simulate(const MachineConfig& given, const AttentionProblem& problem,
                    const SimulationOptions& options) {
  Simulation simulation;
  simulation.problem = checked_problem(given, problem);
  simulation.config = machine_for(given, simulation.problem);
  simulation.tiling = tiling_of(simulation.config, simulation.problem);
  const MachineConfig& config = simulation.config;
  const auto report = [&](std::string_view stage, double share) {
    if (options.progress != nullptr) {
      (*options.progress)(stage, share);
    }
  };
  const int64_t memory_bytes = layout_of(config, simulation.problem).bytes;
  const auto engine_start = Clock::now();
  const std::vector<uint32_t> words = options.program.empty()
                                          ? flash_attention(config, simulation.problem).words()
                                          : options.program;
  const auto on_words = [&](int64_t done) {
    report("cycles", static_cast<double>(done) / static_cast<double>(words.size()));
  };
  FunctionRef<void(int64_t)> words_progress(on_words);
  simulation.schedule = run_engine(config, words,
                                   {.memory_bytes = memory_bytes,
                                    .keep_requests = options.keep_requests,
                                    .progress = &words_progress});
  simulation.engine_seconds = seconds_since(engine_start);
  if (!options.values) {
    return simulation;
  }
  report("inputs", 0);
  const AttentionData data =
      random_inputs(config, simulation.problem, options.distribution, options.seed);
  MachineState state(config, memory_bytes);
  place_inputs(config, simulation.problem, data, state.memory);
  const auto value_start = Clock::now();
  const auto on_events = [&](int64_t done) {
    report("values",
           static_cast<double>(done) / static_cast<double>(simulation.schedule.events.size()));
  };
  FunctionRef<void(int64_t)> events_progress(on_events);
  run_collapsed(config, simulation.schedule, state, {.progress = &events_progress});
  simulation.value_seconds = seconds_since(value_start);
  if (options.checked_rows > 0) {
    report("check", 0);
    simulation.errors = errors_of(simulation, data, state.memory, options);
  }
  return simulation;
}

}  // namespace flashloom::systolic
