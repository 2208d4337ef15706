#include "cli/simulate_trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <span>

#include "cli/terminal.h"
#include "flashloom/io/atomic_file.h"
#include "flashloom/systolic/program/flash_attention.h"
#include "flashloom/systolic/report/fst.h"
#include "flashloom/systolic/report/perfetto.h"
#include "flashloom/systolic/report/vcd.h"
#include "flashloom/systolic/report/waveform.h"

namespace flashloom::cli {
namespace {

// Registers of every cycle: at 16 x 16 about 2,100 words a cycle.
constexpr int kMostTracedRows = 16;
constexpr int64_t kMostTracedCycles = 20'000;

class FileSink final : public systolic::ByteSink {
 public:
  explicit FileSink(const std::string& path) : file_(path) {}

  void append(std::string_view bytes) override { file_.write(bytes); }

  void overwrite(int64_t offset, std::string_view bytes) override {
    file_.write_at(offset, std::as_bytes(std::span(bytes)));
  }

  void commit() { file_.commit(); }

 private:
  AtomicFile file_;
};

// Whether every register is in it.
bool write_waveform(const std::string& path, const systolic::Simulation& run,
                    const systolic::SimulationOptions& options) {
  FileSink file(path);
  std::unique_ptr<systolic::WaveformWriter> writer;
  if (path.ends_with(".vcd")) {
    writer = std::make_unique<systolic::VcdWriter>(file);
  } else {
    writer = std::make_unique<systolic::FstWriter>(file);
  }
  const bool registers =
      std::max(run.config.shape.rows, run.config.shape.columns) <= kMostTracedRows &&
      run.schedule.cycles <= kMostTracedCycles;
  if (registers) {
    systolic::MachineState state(run.config, systolic::layout_of(run.config, run.problem).bytes);
    const systolic::AttentionData data =
        systolic::random_inputs(run.config, run.problem, options.distribution, options.seed);
    systolic::place_inputs(run.config, run.problem, data, state.memory);
    systolic::write_register_waveform(run.config, run.schedule, state, *writer);
  } else {
    systolic::write_schedule_waveform(run.config, run.schedule, *writer);
  }
  file.commit();
  return registers;
}

}  // namespace

void write_trace(const std::string& path, const systolic::Simulation& run,
                 const systolic::SimulationOptions& options) {
  std::string prefix = path;
  std::string suffix = ".fst";
  for (const char* given : {".fst", ".vcd"}) {
    if (path.ends_with(given)) {
      suffix = given;
      prefix.resize(prefix.size() - suffix.size());
    }
  }
  write_file_atomically(prefix + ".json", systolic::perfetto_trace(run.config, run.schedule));
  write_file_atomically(prefix + ".requests.csv", systolic::request_csv(run.schedule));
  const bool registers = write_waveform(prefix + suffix, run, options);
  note(fmt::format("wrote {0}.json, {0}.requests.csv, {0}{1} ({2})", prefix, suffix,
                   registers ? "every register"
                             : fmt::format("slots and transfers; registers up to {0} x {0} and {1} "
                                           "cycles",
                                           kMostTracedRows, kMostTracedCycles)));
}

}  // namespace flashloom::cli
