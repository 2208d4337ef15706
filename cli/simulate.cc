#include <fmt/format.h>

#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/instructions.h"
#include "cli/simulate_flags.h"
#include "cli/simulate_model.h"
#include "cli/simulate_report.h"
#include "cli/simulate_sweep.h"
#include "cli/simulate_trace.h"
#include "cli/terminal.h"
#include "flashloom/core/parallel.h"
#include "flashloom/io/atomic_file.h"
#include "flashloom/io/mapped_file.h"
#include "flashloom/systolic/isa/assembler.h"
#include "flashloom/systolic/program/flash_attention.h"
#include "flashloom/systolic/report/picture.h"
#include "flashloom/systolic/report/simulation.h"

namespace flashloom::cli {
namespace {

struct Options {
  SimulateFlags flags;
  std::string distribution = "outliers";
  int64_t seed = 1;
  int64_t checked_rows = 256;
  bool cycles_only = false;
  std::string model;
  std::string trace;
  std::string picture;
  std::vector<std::string> sweep;
  std::string output = "sweep";
  std::string save_program;
  std::string program;
  int64_t lanes = 128;
  std::string instructions = "best";
  int64_t threads = 0;
  bool json = false;
};

bool is_text(const std::string& path) {
  return path.ends_with(".txt");
}

std::vector<uint32_t> load_program(const std::string& path) {
  const MappedFile file(path);
  const std::string_view content = file.text();
  if (is_text(path)) {
    return systolic::encode_program(systolic::assemble(content));
  }
  constexpr size_t kWordBytes = 4;
  if (content.size() % kWordBytes != 0) {
    throw IoError(path, "",
                  fmt::format("expected whole 32-bit words, got {} bytes", content.size()));
  }
  std::vector<uint32_t> words;
  for (size_t at = 0; at < content.size(); at += kWordBytes) {
    uint32_t word = 0;
    for (size_t i = 0; i < kWordBytes; ++i) {
      word |= static_cast<uint32_t>(static_cast<unsigned char>(content[at + i])) << (8 * i);
    }
    words.push_back(word);
  }
  return words;
}

void save_program(const std::string& path, const std::vector<uint32_t>& words) {
  if (is_text(path)) {
    write_file_atomically(path, systolic::disassemble(words));
    return;
  }
  std::string bytes;
  for (const uint32_t word : words) {
    for (int i = 0; i < 4; ++i) {
      bytes += static_cast<char>(word >> (8 * i));
    }
  }
  write_file_atomically(path, bytes);
}

// Flags that would say what the model says, and outputs that a sweep does not have.
void check_flags(const Options& options) {
  if (options.threads < 0 || options.checked_rows < 0 || options.lanes < 1) {
    throw UsageError("--threads, --checked-rows: expected 0 or more; --lanes: 1 or more");
  }
  const SimulateFlags& flags = options.flags;
  if (!options.model.empty() &&
      (flags.heads != 1 || flags.key_heads != 0 || flags.head_dim != 0 || flags.value_dim != 0)) {
    throw UsageError(
        "--model: expected none of --heads, --kv-heads, --head-dim, --value-dim: the model says "
        "them");
  }
  if (!options.sweep.empty() && (!options.trace.empty() || !options.program.empty() ||
                                 !options.save_program.empty() || options.json)) {
    throw UsageError(
        "--sweep: expected none of --trace, --program, --save-program, --json: it writes a CSV and "
        "a "
        "plot of many runs");
  }
}

int run(const Options& options) {
  check_flags(options);
  set_thread_count(static_cast<int>(options.threads));
  systolic::MachineConfig machine = options.flags.machine();
  systolic::AttentionProblem problem = options.flags.problem();
  systolic::SimulationOptions simulation{
      .distribution = systolic::parse_distribution(options.distribution),
      .seed = static_cast<uint64_t>(options.seed),
      .values = !options.cycles_only,
      .checked_rows = static_cast<int>(options.checked_rows),
      .keep_requests = !options.trace.empty(),
  };
  StatusLine status;
  const auto show = [&](std::string_view stage, double share) {
    status.show(share > 0 ? fmt::format("{} {:.0f} %", stage, 100 * share) : std::string(stage));
  };
  FunctionRef<void(std::string_view, double)> progress(show);
  simulation.progress = &progress;
  SimulateReport report{
      .runs_on =
          fmt::format("{}, {} threads", choose_instructions(options.instructions), thread_count())};
  if (!options.model.empty()) {
    const ModelAttention model = read_model_attention(options.model, problem);
    problem = model.problem;
    report.model = fmt::format("{} ({})", options.model, model.type);
    report.layers = model.layers;
  }
  if (!options.picture.empty()) {
    systolic::check_machine(machine);
    write_file_atomically(options.picture, systolic::plan_picture(machine));
    note("wrote " + options.picture);
  }
  if (!options.sweep.empty()) {
    std::vector<SweepAxis> axes;
    axes.reserve(options.sweep.size());
    for (const std::string& text : options.sweep) {
      axes.push_back(parse_axis(text));
    }
    run_sweep({.machine = machine, .problem = problem, .lanes = static_cast<int>(options.lanes)},
              simulation, axes, options.output,
              [&](const std::string& text) { status.show(text); });
    status.end();
    note(fmt::format("wrote {0}.csv and {0}.svg", options.output));
    return kSuccess;
  }
  if (!options.program.empty()) {
    simulation.program = load_program(options.program);
  }
  if (!options.save_program.empty()) {
    const systolic::AttentionProblem checked = systolic::checked_problem(machine, problem);
    save_program(
        options.save_program,
        systolic::flash_attention(systolic::machine_for(machine, checked), checked).words());
    note("wrote " + options.save_program);
  }
  report.simulation = systolic::simulate(machine, problem, simulation);
  report.plain = systolic::run_plain_array(report.simulation.config, report.simulation.problem,
                                           {.vector_lanes = static_cast<int>(options.lanes)});
  status.end();
  if (!options.trace.empty()) {
    write_trace(options.trace, report.simulation, simulation);
  }
  if (options.json) {
    fmt::print("{}\n", report.json());
  } else {
    report.print();
  }
  return kSuccess;
}

constexpr const char* kExamples =
    "Examples:\n"
    "  flashloom simulate --array 128 --seq 2048 --head-dim 128\n"
    "  flashloom simulate --array 16 --seq 100 --causal --heads 8 --kv-heads 2 --json\n"
    "  flashloom simulate --array 64 --model MODEL --seq 1024 --cycles-only\n"
    "  flashloom simulate --preset tiny --seq 8 --trace run --picture plan.svg\n"
    "  flashloom simulate --sweep array=16:32:64:128:256 --sweep slots=2:3 --cycles-only\n"
    "  flashloom simulate --array 8 --seq 20 --save-program p.txt; … --program p.txt\n"
    "\n"
    "docs/systolic.md says what is simulated.";

}  // namespace

Command simulate_command() {
  auto options = std::make_shared<Options>();
  std::vector<Flag> flags = options->flags.flags();
  std::vector<std::string> distributions;
  distributions.reserve(systolic::kDistributionCount);
  for (int i = 0; i < systolic::kDistributionCount; ++i) {
    distributions.emplace_back(systolic::distribution_name(static_cast<systolic::Distribution>(i)));
  }
  for (Flag& flag : std::vector<Flag>{
           {"--model", &options->model,
            "the attention of every layer of this Hugging Face model (directory or config.json)"},
           {"--distribution", &options->distribution, "of the inputs", false, distributions},
           {"--seed", &options->seed, "of inputs and checked rows"},
           {"--checked-rows", &options->checked_rows, "of the output against float64"},
           {"--cycles-only", &options->cycles_only, "no values"},
           {"--trace", &options->trace,
            "PREFIX.json (Perfetto), PREFIX.fst (waveform), PREFIX.requests.csv; PREFIX.vcd for a "
            "VCD"},
           {"--picture", &options->picture, "write an SVG of a tile's phases"},
           {"--sweep", &options->sweep,
            "NAME=VALUE:VALUE:…, several times for a product; the machine's parameters and array, "
            "seq, keys, heads, kv-heads, head-dim, value-dim, causal, lanes, formats"},
           {"--output", &options->output, "PREFIX of the sweep's .csv and .svg"},
           {"--save-program", &options->save_program,
            "write the program: .txt a listing, else words"},
           {"--program", &options->program, "run this program on the problem's memory"},
           {"--lanes", &options->lanes, "of the plain array's vector unit"},
           {"--instructions", &options->instructions, "of the CPU", false, instruction_choices()},
           {"--threads", &options->threads, "0: all cores"},
           {"--json", &options->json, "one JSON object on standard output"}}) {
    flags.push_back(std::move(flag));
  }
  return {.name = "simulate",
          .summary = "Attention inside a systolic array, in cycles and bits",
          .flags = std::move(flags),
          .run = [options] { return run(*options); },
          .footer = kExamples};
}

}  // namespace flashloom::cli
