#include "flashloom/systolic/report/waveform.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "flashloom/systolic/array/reference_run.h"

namespace flashloom::systolic {
namespace {

// A name for every format: brackets are ranges in a VCD. "pe[3][0].down" is "down" in scope
// "pe_3_0".
std::string plain_name(std::string name) {
  std::ranges::replace(name, '[', '_');
  std::erase(name, ']');
  return name;
}

struct Change {
  size_t signal;
  int64_t value;
  bool adds;  // to the value, else replaces it
};

// Slots and transfers: everything but registers.
class ScheduleSignals {
 public:
  ScheduleSignals(const MachineConfig& config, const Schedule& schedule, WaveformWriter& writer)
      : writer_(writer) {
    constexpr int kFunctionBits = 3;
    constexpr int kCountBits = 16;
    std::vector<size_t> busy;
    std::vector<size_t> function;
    for (int slot = 0; slot < config.slot_count(); ++slot) {
      busy.push_back(writer.declare(fmt::format("slot{}.busy", slot), 1));
      function.push_back(writer.declare(fmt::format("slot{}.function", slot), kFunctionBits));
    }
    const size_t loads = writer.declare("dma.loads_under_way", kCountBits);
    const size_t stores = writer.declare("dma.stores_under_way", kCountBits);
    for (const MatrixIssue& issue : schedule.issues) {
      const Function of =
          schedule.program[static_cast<size_t>(issue.instruction)].matrix_function();
      const auto slot = static_cast<size_t>(issue.slot);
      add(issue.start() + plan_timing(of).busy.at(config.shape), busy[slot], 0);
      add(issue.start(), function[slot], static_cast<int64_t>(of));
      add(issue.start(), busy[slot], 1);
    }
    for (const DmaTransfer& transfer : schedule.transfers) {
      const bool is_store = schedule.program[static_cast<size_t>(transfer.instruction)].is_store();
      add(transfer.acquired, is_store ? stores : loads, 1, true);
      add(transfer.finished + 1, is_store ? stores : loads, -1, true);
    }
    values_.resize(2 * busy.size() + 2);
  }

  /// Changes up to and with this cycle.
  void advance(int64_t cycle) {
    for (; !changes_.empty() && changes_.begin()->first <= cycle;
         changes_.erase(changes_.begin())) {
      const auto& [time, change] = *changes_.begin();
      int64_t& value = values_[change.signal];
      value = change.adds ? value + change.value : change.value;
      writer_.set(time, change.signal, static_cast<uint64_t>(value));
    }
  }

 private:
  void add(int64_t time, size_t signal, int64_t value, bool adds = false) {
    changes_.emplace(time, Change{signal, value, adds});
  }

  WaveformWriter& writer_;
  std::multimap<int64_t, Change> changes_;
  std::vector<int64_t> values_;
};

}  // namespace

void write_schedule_waveform(const MachineConfig& config, const Schedule& schedule,
                             WaveformWriter& writer) {
  ScheduleSignals signals(config, schedule, writer);
  signals.advance(schedule.cycles);
  writer.finish(schedule.cycles);
}

void write_register_waveform(const MachineConfig& config, const Schedule& schedule,
                             MachineState& state, WaveformWriter& writer) {
  ScheduleSignals signals(config, schedule, writer);
  std::vector<size_t> registers;
  constexpr int kRegisterBits = 32;
  const size_t count = dump(ArrayState(config)).size();
  for (size_t i = 0; i < count; ++i) {
    const std::string name = dump_name(config, i);
    const bool is_flag = name.ends_with("valid") || name.ends_with("exp2_done");
    registers.push_back(writer.declare(plain_name(name), is_flag ? 1 : kRegisterBits));
  }
  run_reference(config, schedule, state, [&](const ObservedCycle& cycle) {
    signals.advance(cycle.cycle);
    const std::vector<uint32_t> words = dump(cycle.registers);
    for (size_t i = 0; i < words.size(); ++i) {
      writer.set(cycle.cycle, registers[i], words[i]);
    }
  });
  signals.advance(schedule.cycles);
  writer.finish(schedule.cycles);
}

}  // namespace flashloom::systolic
