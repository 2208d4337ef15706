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
                                            "drain before the next tile",
                                            "normalise",
                                            "waiting",
                                            "last store"};
static_assert(std::size(kPhaseNames) == phase_count);

struct Part {
  Phase phase;
  int64_t cycles;
};

// An inner iteration but for what values wait for behind their last row.
int64_t period_without_drain(const Simulation& simulation) {
  const ArrayShape& shape = simulation.config.shape;
  const int load =
      shape.shadow ? 0 : plan_timing(Function::load_stationary).conflict_free.at(shape) + 1;
  return load + plan_timing(Function::score).conflict_free.at(shape) + 1 +
         int64_t{simulation.tiling.value_blocks} * shape.rows;
}

// What an instruction needs of column 0 before the next one may start there.
std::vector<Part> parts_of(const Simulation& simulation, Function function, Function next) {
  const ArrayShape& shape = simulation.config.shape;
  const int rows = shape.rows;
  const int climb = shape.pe_depth * rows;
  switch (planned_as(function)) {
    case Function::load_stationary:
      return {{load_queries, plan_timing(function).conflict_free.at(shape) + 1}};
    case Function::score: {
      const int all = plan_timing(function).conflict_free.at(shape) + 1;
      return {{scores, climb}, {maxima, rows}, {exponentials, all - climb - rows}};
    }
    case Function::value: {
      // The next load, score or value waits for what its slot has not yet summed up; a
      // normalisation for everything.
      const bool goes_on = next != Function::lse_norm_scale;
      const int64_t rest = goes_on ? simulation.period() - period_without_drain(simulation)
                                   : plan_timing(Function::value).busy.at(shape) + 1 - rows;
      return {{values, rows}, {drain, std::max<int64_t>(0, rest)}};
    }
    case Function::lse_norm_scale:
    case Function::lse_norm:
      return {{normalise, plan_timing(function).busy.at(shape) + 1}};
    default:
      return {};
  }
}

}  // namespace

std::vector<CyclePhase> cycle_phases(const Simulation& simulation) {
  const Schedule& schedule = simulation.schedule;
  const ArrayShape& shape = simulation.config.shape;
  std::array<int64_t, phase_count> cycles = {};
  const auto function_of = [&](const MatrixIssue& issue) {
    return schedule.program[static_cast<size_t>(issue.instruction)].matrix_function();
  };
  // Loads of a shadow register run beside the others, all but the first.
  std::vector<MatrixIssue> issues;
  for (const MatrixIssue& issue : schedule.issues) {
    if (!shape.shadow || issues.empty() || function_of(issue) != Function::load_stationary) {
      issues.push_back(issue);
    }
  }
  for (size_t i = 0; i < issues.size(); ++i) {
    const MatrixIssue& issue = issues[i];
    const bool last = i + 1 == issues.size();
    const Function function = function_of(issue);
    const int64_t end =
        last ? issue.start() + plan_timing(function).busy.at(shape) : issues[i + 1].start();
    int64_t left = end - issue.start();
    const Function next = last ? Function::lse_norm_scale : function_of(issues[i + 1]);
    for (const Part& part : parts_of(simulation, function, next)) {
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
