#include "cli/simulate_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <variant>

#include "flashloom/json/json.h"
#include "flashloom/systolic/baseline/accelerators.h"
#include "flashloom/systolic/machine/machine_keys.h"
#include "flashloom/systolic/report/costs.h"

namespace flashloom::cli {
namespace {

using systolic::IssueState;
using systolic::Simulation;

double share(int64_t part, int64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}

int64_t issue_cycles(const Simulation& simulation, IssueState state) {
  return simulation.schedule.issue_cycles[static_cast<size_t>(state)];
}

double seconds_of(const Simulation& simulation) {
  return static_cast<double>(simulation.schedule.cycles) / (simulation.config.frequency_ghz * 1e9);
}

void print_cycles(const Simulation& run) {
  const int64_t cycles = run.schedule.cycles;
  fmt::print("cycles           {} ({:.1f} us at {} GHz)\n", cycles, 1e6 * seconds_of(run),
             run.config.frequency_ghz);
  fmt::print("utilisation      {:.4f} of the array's multiply-adds", run.utilisation());
  if (run.issued_utilisation() > run.utilisation() * 1.0005) {
    fmt::print("; {:.4f} of the tiles that ran (masks, tails and padding waste {:.1f} %)",
               run.issued_utilisation(), 100 * (1 - run.utilisation() / run.issued_utilisation()));
  }
  fmt::print("\nperiod           {} cycles an inner iteration of {} tiles\n", run.period(),
             run.issued_tiles());
  fmt::print("bandwidth        {:.1f} bytes/cycle ({:.1f} GB/s) of {:g}; {} read, {} written\n",
             run.bytes_per_cycle(), run.bytes_per_cycle() * run.config.frequency_ghz,
             run.config.memory.bytes_per_cycle, run.schedule.bytes_read,
             run.schedule.bytes_written);
  fmt::print("matrix active    {:.1f} %, DMA active {:.1f} %\n",
             100 * share(run.schedule.matrix_active, cycles),
             100 * share(run.schedule.dma_active, cycles));
}

void print_where(const Simulation& run) {
  fmt::print("\nwhere cycles go (column 0)\n");
  for (const systolic::CyclePhase& phase : systolic::cycle_phases(run)) {
    if (phase.cycles > 0) {
      fmt::print("  {:<30}{:>12}  {:5.1f} %\n", phase.name, phase.cycles,
                 100 * share(phase.cycles, run.schedule.cycles));
    }
  }
  fmt::print("issue: cycles without a matrix instruction, by cause\n");
  for (int i = 1; i < systolic::kIssueStateCount; ++i) {
    const auto state = static_cast<IssueState>(i);
    if (issue_cycles(run, state) > 0) {
      fmt::print("  {:<30}{:>12}  {:5.1f} %\n", systolic::issue_state_name(state),
                 issue_cycles(run, state),
                 100 * share(issue_cycles(run, state), run.schedule.cycles));
    }
  }
}

void print_costs(const Simulation& run) {
  const systolic::Roofline roofline = systolic::roofline_of(run);
  fmt::print("\nroofline         {:.1f} flops/byte, ridge {:.1f}: bound by the {}\n",
             roofline.flops_per_byte, roofline.ridge,
             roofline.memory_utilisation < 1 ? "memory" : "array");
  const auto terms = systolic::energy_of(run);
  double sum = 0;
  for (const systolic::EnergyTerm& term : terms) {
    sum += term.picojoules;
  }
  fmt::print("energy           {:.1f} uJ by the table of docs/systolic.md, an estimate\n",
             sum / 1e6);
  for (const systolic::EnergyTerm& term : terms) {
    fmt::print("  {:<34}{:>14.4g}  {:5.1f} %\n", term.name, term.count,
               100 * term.picojoules / sum);
  }
}

void print_comparison(const Simulation& run, const systolic::PlainArrayRun& plain) {
  fmt::print("\nplain array      {} cycles, utilisation {:.4f}: the fused array is {:.2f} x\n",
             plain.cycles, plain.utilisation,
             static_cast<double>(plain.cycles) / static_cast<double>(run.schedule.cycles));
  // The accelerators' models are of 128 x 128 arrays.
  constexpr int kCompared = 128;
  if (run.config.shape.rows != kCompared || run.config.shape.columns != kCompared) {
    return;
  }
  for (const auto& model : {systolic::neuron_core_v2(), systolic::tpu_v5e()}) {
    fmt::print(
        "{:<16} utilisation at most {:.3f} (uncalibrated): {:.2f} x; the paper's {:.2f} x "
        "would need {:.2f} {}\n",
        model.name, model.utilisation, model.ratio(run.utilisation()), model.published_ratio,
        model.calibrated_parameter(run.utilisation()), model.calibration_name);
  }
}

Json machine_json(const systolic::MachineConfig& config) {
  Json json{{"name", config.name}};
  for (const systolic::MachineKey& key : systolic::machine_keys()) {
    std::visit([&](const auto& value) { json[key.name] = value; }, key.get(config));
  }
  return json;
}

Json issue_json(const Simulation& run) {
  Json json = Json::object();
  for (int i = 0; i < systolic::kIssueStateCount; ++i) {
    const auto state = static_cast<IssueState>(i);
    json[systolic::issue_state_name(state)] = issue_cycles(run, state);
  }
  return json;
}

Json accelerator_json(const systolic::AcceleratorModel& model, double utilisation) {
  Json json{{"name", model.name},
            {"utilisation", model.utilisation},
            {"ratio", model.ratio(utilisation)},
            {"published_ratio", model.published_ratio},
            {"calibration", model.calibration_name},
            {"calibrated_value", model.calibrated_parameter(utilisation)}};
  for (const systolic::SourcedNumber& number : model.parameters) {
    json["parameters"].push_back({{"name", number.name},
                                  {"value", number.value},
                                  {"unit", number.unit},
                                  {"source", number.source}});
  }
  return json;
}

}  // namespace

void SimulateReport::print() const {
  const Simulation& run = simulation;
  fmt::print("{}\non {} x {} ({}{})\n\n", systolic::describe(run.problem), run.config.shape.rows,
             run.config.shape.columns, run.config.name, run.config.compat ? ", compat" : "");
  if (layers > 1 || !model.empty()) {
    const double seconds = static_cast<double>(layers) * seconds_of(run);
    fmt::print("model            {}: {} layers alike, {} cycles, {:.3f} ms; one layer:\n", model,
               layers, layers * run.schedule.cycles, 1e3 * seconds);
  }
  print_cycles(run);
  if (run.errors.rows > 0) {
    fmt::print(
        "max_error        {:.3g} (mean {:.3g}, rms {:.3g}) against float64, {} rows{}\n",
        run.errors.largest, run.errors.mean, run.errors.root_mean_square, run.errors.rows,
        run.errors.not_numbers > 0
            ? fmt::format("; {} outputs are NaN where float64's are not", run.errors.not_numbers)
            : "");
  }
  fmt::print("simulated in     {:.2f} s cycles + {:.2f} s values ({}): {:.3g} PE-cycles/s\n",
             run.engine_seconds, run.value_seconds, runs_on, run.pe_cycles_per_second());
  print_where(run);
  print_costs(run);
  if (plain) {
    print_comparison(run, *plain);
  }
  fmt::print("\nmachine (a TOML file of these lines is read by --config)\n{}",
             systolic::machine_toml(run.config));
}

std::string SimulateReport::json() const {
  const Simulation& run = simulation;
  const auto bubbles = issue_cycles(run, IssueState::no_instruction);
  const systolic::AttentionProblem& problem = run.problem;
  const systolic::Roofline roofline = systolic::roofline_of(run);
  Json json{{"problem", systolic::describe(problem)},
            {"heads", problem.heads},
            {"kv_heads", problem.key_heads},
            {"queries", problem.queries},
            {"keys", problem.keys},
            {"head_dim", problem.head_dim},
            {"value_dim", problem.value_dim},
            {"causal", problem.causal},
            {"cycles", run.schedule.cycles},
            {"seconds", seconds_of(run)},
            {"utilisation", run.utilisation()},
            {"utilisation_issued", run.issued_utilisation()},
            {"period", run.period()},
            {"tiles", run.issued_tiles()},
            {"bubbles", bubbles},
            {"issue_cycles", issue_json(run)},
            {"matrix_active", run.schedule.matrix_active},
            {"dma_active", run.schedule.dma_active},
            {"bytes_read", run.schedule.bytes_read},
            {"bytes_written", run.schedule.bytes_written},
            {"bandwidth", run.bytes_per_cycle()},
            {"runs_on", runs_on},
            {"engine_seconds", run.engine_seconds},
            {"value_seconds", run.value_seconds},
            {"pe_cycles_per_second", run.pe_cycles_per_second()}};
  if (run.errors.rows > 0) {
    json["max_error"] = run.errors.largest;
    json["mean_error"] = run.errors.mean;
    json["rms_error"] = run.errors.root_mean_square;
    json["checked_rows"] = run.errors.rows;
    json["not_numbers"] = run.errors.not_numbers;
  }
  if (!model.empty()) {
    json["model"] = model;
    json["layers"] = layers;
    json["model_cycles"] = layers * run.schedule.cycles;
    json["model_seconds"] = static_cast<double>(layers) * seconds_of(run);
  }
  for (const systolic::CyclePhase& phase : systolic::cycle_phases(run)) {
    json["phases"][phase.name] = phase.cycles;
  }
  json["roofline"] = {{"flops_per_byte", roofline.flops_per_byte},
                      {"ridge", roofline.ridge},
                      {"memory_utilisation", roofline.memory_utilisation}};
  for (const systolic::EnergyTerm& term : systolic::energy_of(run)) {
    json["energy_picojoules"][term.name] = term.picojoules;
  }
  if (plain) {
    json["plain_array"] = {{"cycles", plain->cycles},
                           {"utilisation", plain->utilisation},
                           {"array_busy", plain->array_busy},
                           {"vector_busy", plain->vector_busy}};
    json["accelerators"] =
        Json::array({accelerator_json(systolic::neuron_core_v2(), run.utilisation()),
                     accelerator_json(systolic::tpu_v5e(), run.utilisation())});
  }
  json["machine"] = machine_json(run.config);
  return json.dump(2);
}

}  // namespace flashloom::cli
