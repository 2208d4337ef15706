#include "flashloom/systolic/report/waveform.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <string_view>
#include <vector>

#include "flashloom/systolic/array/reference_run.h"

namespace flashloom::systolic {
namespace {

// Identifiers of VCD: digits to the base 94 from '!' on.
std::string identifier(size_t number) {
  constexpr size_t kBase = 94;
  std::string text;
  do {
    text += static_cast<char>('!' + number % kBase);
    number /= kBase;
  } while (number > 0);
  return text;
}

// Signals and their changes, in order of time.
class Dump {
 public:
  size_t declare(std::string_view name, int width) {
    std::string plain(name);
    // Scopes and ranges have a meaning of their own in a reference.
    std::ranges::replace(plain, '[', '_');
    std::erase(plain, ']');
    std::ranges::replace(plain, '.', '_');
    header_ += fmt::format("$var wire {} {} {} $end\n", width, identifier(widths_.size()), plain);
    widths_.push_back(width);
    values_.push_back(0);
    return widths_.size() - 1;
  }

  void set(int64_t time, size_t signal, uint64_t value) {
    if (time > 0 && values_[signal] == value) {
      return;
    }
    values_[signal] = value;
    if (time != time_) {
      body_ += fmt::format("#{}\n", time);
      time_ = time;
    }
    fmt::format_to(std::back_inserter(body_), "b{:b} {}\n", value, identifier(signal));
  }

  std::string text(int64_t end) const {
    return "$timescale 1 ns $end\n$scope module machine $end\n" + header_ +
           "$upscope $end\n$enddefinitions $end\n" + body_ + fmt::format("#{}\n", end);
  }

 private:
  std::string header_;
  std::string body_;
  std::vector<int> widths_;
  std::vector<uint64_t> values_;
  int64_t time_ = -1;
};

struct Change {
  size_t signal;
  int64_t value;
  bool adds;  // to the value, else replaces it
};

// Slots and transfers: everything but registers.
class ScheduleSignals {
 public:
  ScheduleSignals(const MachineConfig& config, const Schedule& schedule, Dump& dump) : dump_(dump) {
    constexpr int kFunctionBits = 3;
    constexpr int kCountBits = 16;
    std::vector<size_t> busy;
    std::vector<size_t> function;
    for (int slot = 0; slot < config.controller.slots; ++slot) {
      busy.push_back(dump.declare(fmt::format("slot{}_busy", slot), 1));
      function.push_back(dump.declare(fmt::format("slot{}_function", slot), kFunctionBits));
    }
    const size_t loads = dump.declare("loads_under_way", kCountBits);
    const size_t stores = dump.declare("stores_under_way", kCountBits);
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
      dump_.set(time, change.signal, static_cast<uint64_t>(value));
    }
  }

 private:
  void add(int64_t time, size_t signal, int64_t value, bool adds = false) {
    changes_.emplace(time, Change{signal, value, adds});
  }

  Dump& dump_;
  std::multimap<int64_t, Change> changes_;
  std::vector<int64_t> values_;
};

}  // namespace

std::string schedule_vcd(const MachineConfig& config, const Schedule& schedule) {
  Dump dump;
  ScheduleSignals signals(config, schedule, dump);
  signals.advance(schedule.cycles);
  return dump.text(schedule.cycles);
}

std::string register_vcd(const MachineConfig& config, const Schedule& schedule,
                         MachineState& state) {
  Dump dump;
  ScheduleSignals signals(config, schedule, dump);
  std::vector<size_t> registers;
  constexpr int kRegisterBits = 32;
  const size_t count = systolic::dump(ArrayState(config)).size();
  for (size_t i = 0; i < count; ++i) {
    const std::string name = dump_name(config, i);
    const bool is_flag = name.ends_with("valid") || name.ends_with("exp2_done");
    registers.push_back(dump.declare(name, is_flag ? 1 : kRegisterBits));
  }
  run_reference(config, schedule, state, [&](const ObservedCycle& cycle) {
    signals.advance(cycle.cycle);
    const std::vector<uint32_t> words = systolic::dump(cycle.registers);
    for (size_t i = 0; i < words.size(); ++i) {
      dump.set(cycle.cycle, registers[i], words[i]);
    }
  });
  signals.advance(schedule.cycles);
  return dump.text(schedule.cycles);
}

}  // namespace flashloom::systolic
