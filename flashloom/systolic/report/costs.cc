#include "flashloom/systolic/report/costs.h"

#include <algorithm>
#include <array>

namespace flashloom::systolic {
namespace {

enum Phase {
  fill,
  load_queries,
  scores,
  maxima,
  exponentials,
  values,
  drain,
  normalise,
  waiting,
  store_tail,
  phase_count,
};

constexpr std::string_view kPhaseNames[] = {"fill (first loads)",
                                            "load queries",
                                            "scores",
                                            "maxima and return of scores",
                                            "exp2 and row sums",
                                            "values",
                                            "drain before the next load",
                                            "normalise",
                                            "waiting",
                                            "last store"};
static_assert(std::size(kPhaseNames) == phase_count);

struct Part {
  Phase phase;
  int64_t cycles;
};

// What an instruction needs of column 0 before the next one may start there.
std::vector<Part> parts_of(const MachineConfig& config, Function function, bool next_is_loading) {
  const int rows = config.shape.rows;
  switch (planned_as(function)) {
    case Function::load_stationary:
      return {{load_queries, config.shape.columns}};
    case Function::score:
      return {{scores, rows}, {maxima, rows}, {exponentials, config.shape.pieces + 4}};
    case Function::value: {
      // The next load waits for the score's accumulation in the slot that it enters; a
      // normalisation for everything.
      const int64_t rest =
          next_is_loading
              ? std::max<int64_t>(0, iteration_period(config.shape, config.controller.slots) -
                                         config.shape.columns - 3 * rows - config.shape.pieces - 4)
              : plan_timing(Function::value).busy.at(config.shape) + 1 - rows;
      return {{values, rows}, {drain, rest}};
    }
    case Function::lse_norm_scale:
    case Function::lse_norm:
      return {{normalise, plan_timing(function).busy.at(config.shape) + 1}};
    default:
      return {};
  }
}

}  // namespace

std::vector<CyclePhase> cycle_phases(const Simulation& simulation) {
  const Schedule& schedule = simulation.schedule;
  std::array<int64_t, phase_count> cycles = {};
  const auto function_of = [&](const MatrixIssue& issue) {
    return schedule.program[static_cast<size_t>(issue.instruction)].matrix_function();
  };
  for (size_t i = 0; i < schedule.issues.size(); ++i) {
    const MatrixIssue& issue = schedule.issues[i];
    const bool last = i + 1 == schedule.issues.size();
    const Function function = function_of(issue);
    const int64_t end = last
                            ? issue.start() + plan_timing(function).busy.at(simulation.config.shape)
                            : schedule.issues[i + 1].start();
    int64_t left = end - issue.start();
    const bool next_is_loading =
        !last && function_of(schedule.issues[i + 1]) == Function::load_stationary;
    for (const Part& part : parts_of(simulation.config, function, next_is_loading)) {
      const int64_t taken = std::min(left, part.cycles);
      cycles[part.phase] += taken;
      left -= taken;
    }
    cycles[waiting] += left;
    if (last) {
      cycles[store_tail] += schedule.cycles - end;
    }
  }
  cycles[fill] = schedule.issues.empty() ? schedule.cycles : schedule.issues.front().start();
  std::vector<CyclePhase> phases;
  phases.reserve(phase_count);
  for (int phase = 0; phase < phase_count; ++phase) {
    phases.push_back({kPhaseNames[phase], cycles[static_cast<size_t>(phase)]});
  }
  return phases;
}

std::vector<SourcedNumber> energy_table() {
  constexpr std::string_view kHorowitz =
      "Horowitz, Computing's energy problem, ISSCC 2014 (45 nm, 0.9 V)";
  return {
      {"fp16 multiply", 1.1, "pJ", kHorowitz},
      {"fp32 add", 0.9, "pJ", kHorowitz},
      {"fp32 multiply", 3.7, "pJ", kHorowitz},
      {"SRAM, 32 KB bank", 20.0 / 64, "pJ/bit", kHorowitz},
      {"main memory", 3.97, "pJ/bit",
       "O'Connor et al., Fine-grained DRAM, MICRO 2017 (HBM2, whole access)"},
  };
}

std::vector<EnergyTerm> energy_of(const Simulation& simulation) {
  const MachineConfig& config = simulation.config;
  const std::vector<SourcedNumber> table = energy_table();
  const double multiply_add = table[0].value + table[1].value;
  const double sum_multiply_add = table[2].value + table[1].value;
  const double rows = config.shape.rows;
  const double columns = config.shape.columns;
  const double element_bits = config.formats.element.width();
  const double sum_bits = config.formats.accumulator.width();
  double products = 0;
  double softmax = 0;
  double sums = 0;
  double spad_bits = 0;
  double accumulator_bits = 0;
  for (const MatrixIssue& issue : simulation.schedule.issues) {
    switch (planned_as(
        simulation.schedule.program[static_cast<size_t>(issue.instruction)].matrix_function())) {
      case Function::load_stationary:
        spad_bits += rows * columns * element_bits;
        break;
      case Function::score:
        products += rows * rows * columns;
        // Two subtractions of a comparison, x - m, the scale, the chord, the row's sum.
        softmax += 5 * rows * columns;
        sums += 2 * columns;
        spad_bits += rows * rows * element_bits;
        accumulator_bits += 2 * columns * sum_bits;
        break;
      case Function::value:
        products += rows * rows * columns;
        sums += rows * columns;
        spad_bits += rows * rows * element_bits;
        accumulator_bits += 2 * rows * columns * sum_bits;
        break;
      case Function::lse_norm_scale:
        accumulator_bits += columns * sum_bits;
        break;
      case Function::lse_norm:
        sums += rows * columns;
        accumulator_bits += 2 * rows * columns * sum_bits;
        break;
      default:
        break;
    }
  }
  const double read = 8.0 * static_cast<double>(simulation.schedule.bytes_read);
  const double written = 8.0 * static_cast<double>(simulation.schedule.bytes_written);
  spad_bits += read;            // loads write the scratchpad
  accumulator_bits += written;  // stores read the sums
  return {
      {"multiply-adds of QK and PV", products, products * multiply_add},
      {"multiply-adds of the softmax", softmax, softmax * multiply_add},
      {"multiply-adds of the accumulators", sums, sums * sum_multiply_add},
      {"scratchpad, bits", spad_bits, spad_bits * table[3].value},
      {"accumulation SRAM, bits", accumulator_bits, accumulator_bits * table[3].value},
      {"main memory, bits", read + written, (read + written) * table[4].value},
  };
}

Roofline roofline_of(const Simulation& simulation) {
  const auto bytes =
      static_cast<double>(simulation.schedule.bytes_read + simulation.schedule.bytes_written);
  const double peak = 2.0 * simulation.config.shape.rows * simulation.config.shape.columns;
  Roofline roofline;
  roofline.flops_per_byte = simulation.useful_flops() / bytes;
  roofline.ridge = peak / simulation.config.memory.bytes_per_cycle;
  roofline.memory_utilisation = roofline.flops_per_byte / roofline.ridge;
  return roofline;
}

}  // namespace flashloom::systolic
