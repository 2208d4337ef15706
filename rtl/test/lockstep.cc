#include "rtl/test/lockstep.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <deque>
#include <string_view>
#include <utility>

#include "flashloom/systolic/array/reference_run.h"
#include "flashloom/systolic/engine/matrix_controller.h"
#include "flashloom/systolic/isa/assembler.h"
#include "flashloom/systolic/plan/plan.h"
#include "rtl/generate/control_registers.h"

namespace flashloom::rtl {
namespace {

using systolic::Field;
using systolic::Instruction;
using systolic::Kind;

// One direction of the DMA as the simulator has it: heads start as soon as their semaphore can be
// taken, as long as the table of transfers has room.
struct Direction {
  std::string name;
  std::deque<int> queue;  // instructions
  const std::vector<int64_t>& starts;
  const std::vector<int64_t>& finishes;
  size_t table;  // most transfers under way
  std::vector<int> order = {};
  size_t finished = 0;

  bool starts_in(int64_t cycle) const {
    return order.size() < starts.size() && starts[order.size()] == cycle;
  }

  bool finishes_in(int64_t cycle) const {
    return finished < finishes.size() && finishes[finished] == cycle;
  }
};

class ControlReplay {
 public:
  ControlReplay(const systolic::MachineConfig& config, const systolic::Schedule& schedule,
                const EngineTrace& trace)
      : config_(config),
        program_(schedule.program),
        trace_(trace),
        matrix_(config),
        loads_{.name = "load",
               .starts = trace.load_starts,
               .finishes = trace.load_finishes,
               .table = static_cast<size_t>(config.dma.load_queue)},
        stores_{.name = "store",
                .starts = trace.store_starts,
                .finishes = trace.store_finishes,
                .table = static_cast<size_t>(config.dma.store_queue)} {}

  std::string run() {
    for (int64_t cycle = 0; cycle < trace_.cycles; ++cycle) {
      std::string difference = issue(cycle);
      if (difference.empty()) {
        difference = start(loads_, cycle);
      }
      if (difference.empty()) {
        difference = start(stores_, cycle);
      }
      if (!difference.empty()) {
        return difference;
      }
      decode(cycle);
      release(cycle);
    }
    return issued_ == trace_.issues.size() ? counter_difference() : "matrix instructions are left";
  }

 private:
  std::string issue(int64_t cycle) {
    const systolic::MatrixController::Step step = matrix_.step(cycle, semaphores_);
    ++states_[static_cast<size_t>(step.state)];
    const bool expected = step.state == systolic::IssueState::issued;
    const bool actual = issued_ < trace_.issues.size() && trace_.issues[issued_] == cycle;
    if (expected != actual) {
      return fmt::format("cycle {}: the RTL {} matrix instruction {}, the simulator says {}", cycle,
                         actual ? "issues" : "does not issue", issued_,
                         systolic::issue_state_name(step.state));
    }
    if (actual) {
      ++issued_;
      const Instruction& instruction = step.issued.instruction;
      if (instruction[Field::release] != 0) {
        releases_.push_back(
            {step.at.start() +
                 systolic::plan_timing(instruction.matrix_function()).release.at(config_.shape),
             instruction[Field::semaphore], instruction[Field::release_value]});
      }
    }
    return "";
  }

  std::string start(Direction& direction, int64_t cycle) {
    bool expected = false;
    if (!direction.queue.empty()) {
      const Instruction& head = program_[static_cast<size_t>(direction.queue.front())];
      systolic::Semaphore& semaphore = semaphores_[static_cast<size_t>(head[Field::semaphore])];
      const bool room = direction.order.size() - direction.finished < direction.table;
      expected =
          room && (head[Field::acquire] == 0 || semaphore.available(head[Field::acquire_value]));
      semaphore.busy = semaphore.busy || (expected && head[Field::acquire] != 0);
    }
    if (expected != direction.starts_in(cycle)) {
      return fmt::format("cycle {}: {} {} should {}start", cycle, direction.name,
                         direction.order.size(), expected ? "" : "not ");
    }
    if (expected) {
      direction.order.push_back(direction.queue.front());
      direction.queue.pop_front();
    }
    return "";
  }

  // Words that the RTL has taken; the last of an instruction puts it into its queue.
  void decode(int64_t cycle) {
    if (taken_ == trace_.accepted.size() || trace_.accepted[taken_] != cycle) {
      return;
    }
    ++taken_;
    const Instruction& instruction = program_[static_cast<size_t>(decoded_)];
    if (++words_ < systolic::kInstructionWords[static_cast<size_t>(instruction.kind)]) {
      return;
    }
    words_ = 0;
    if (instruction.kind == Kind::matrix) {
      matrix_.push(instruction, decoded_);
    } else if (instruction.kind == Kind::dma) {
      (instruction.is_store() ? stores_ : loads_).queue.push_back(decoded_);
    }
    ++decoded_;
  }

  void release(int64_t cycle) {
    const auto write = [&](int64_t semaphore, int64_t value) {
      semaphores_[static_cast<size_t>(semaphore)].busy = false;
      semaphores_[static_cast<size_t>(semaphore)].value = value;
    };
    std::erase_if(releases_, [&](const Release& of) {
      if (of.cycle == cycle) {
        write(of.semaphore, of.value);
      }
      return of.cycle == cycle;
    });
    for (Direction* direction : {&loads_, &stores_}) {
      if (direction->finishes_in(cycle)) {
        const Instruction& instruction =
            program_[static_cast<size_t>(direction->order[direction->finished++])];
        if (instruction[Field::release] != 0) {
          write(instruction[Field::semaphore], instruction[Field::release_value]);
        }
      }
    }
  }

  struct Release {
    int64_t cycle;
    int64_t semaphore;
    int64_t value;
  };

  int64_t state_cycles(systolic::IssueState state) const {
    return states_[static_cast<size_t>(state)];
  }

  // Cycles in which some transfer is under way: from behind its start to its end.
  int64_t dma_cycles() const {
    std::vector<bool> busy(static_cast<size_t>(trace_.cycles), false);
    for (const Direction* direction : {&loads_, &stores_}) {
      for (size_t i = 0; i < direction->finishes.size(); ++i) {
        std::fill(busy.begin() + direction->starts[i] + 1,
                  busy.begin() + direction->finishes[i] + 1, true);
      }
    }
    return std::ranges::count(busy, true);
  }

  std::string counter_difference() const {
    using systolic::IssueState;
    std::array<int64_t, systolic::kKindCount> kinds = {};
    for (const Instruction& instruction : program_) {
      ++kinds[static_cast<size_t>(instruction.kind)];
    }
    const auto count = [](const auto& list) { return static_cast<int64_t>(list.size()); };
    const std::pair<std::string_view, int64_t> expected[] = {
        {"cycles", trace_.cycles},
        {"waits_instruction", state_cycles(IssueState::no_instruction)},
        {"waits_array", state_cycles(IssueState::array)},
        {"waits_drain", state_cycles(IssueState::drain)},
        {"waits_semaphore",
         state_cycles(IssueState::waits_query) + state_cycles(IssueState::waits_key) +
             state_cycles(IssueState::waits_value) + state_cycles(IssueState::waits_output) +
             state_cycles(IssueState::waits_other)},
        {"matrix_active", matrix_.active_cycles()},
        {"dma_active", dma_cycles()},
        {"words", count(trace_.accepted)},
        {"words_out", count(trace_.accepted)},
        {"matrix_instructions", kinds[static_cast<size_t>(Kind::matrix)]},
        {"dma_instructions", kinds[static_cast<size_t>(Kind::dma)]},
        {"fences", kinds[static_cast<size_t>(Kind::fence)]},
        {"issued", count(trace_.issues)},
        {"loads_started", count(trace_.load_starts)},
        {"loads_finished", count(trace_.load_finishes)},
        {"stores_started", count(trace_.store_starts)},
        {"stores_finished", count(trace_.store_finishes)},
        {"state", static_cast<int64_t>(ControlState::done)},
        {"error", static_cast<int64_t>(ControlError::none)},
        {"interrupt", 1},
    };
    for (const auto& [name, value] : expected) {
      if (trace_.control.at(name) != value) {
        return fmt::format("register {} holds {}, the simulator counts {}", name,
                           trace_.control.at(name), value);
      }
    }
    return "";
  }

  const systolic::MachineConfig& config_;
  const std::vector<Instruction>& program_;
  const EngineTrace& trace_;
  systolic::MatrixController matrix_;
  systolic::Semaphores semaphores_ = {};
  Direction loads_;
  Direction stores_;
  std::vector<Release> releases_;
  std::array<int64_t, systolic::kIssueStateCount> states_ = {};
  size_t issued_ = 0;
  size_t taken_ = 0;
  int decoded_ = 0;
  int words_ = 0;
};

}  // namespace

systolic::Schedule schedule_of(const systolic::MachineConfig& config,
                               const std::vector<uint32_t>& words, const EngineTrace& trace) {
  systolic::Schedule schedule;
  schedule.program = systolic::decode_program(words);
  schedule.cycles = trace.cycles;
  size_t issues = 0;
  size_t loads = 0;
  size_t stores = 0;
  for (int i = 0; i < static_cast<int>(schedule.program.size()); ++i) {
    const Instruction& instruction = schedule.program[static_cast<size_t>(i)];
    if (instruction.kind == Kind::matrix && issues < trace.issues.size()) {
      schedule.issues.push_back({.instruction = i,
                                 .slot = static_cast<int>(issues) % config.controller.slots,
                                 .cycle = trace.issues[issues]});
      ++issues;
    } else if (instruction.kind == Kind::dma) {
      const bool is_store = instruction.is_store();
      size_t& number = is_store ? stores : loads;
      const auto& starts = is_store ? trace.store_starts : trace.load_starts;
      const auto& finishes = is_store ? trace.store_finishes : trace.load_finishes;
      if (number >= finishes.size()) {
        continue;
      }
      systolic::DmaTransfer transfer{.instruction = i,
                                     .acquired = starts[number],
                                     .finished = finishes[number],
                                     .first_request = schedule.requests.size(),
                                     .request_count = static_cast<int>(instruction[Field::repeat])};
      // Rows move in cycles that the trace does not keep: a store's all at its start, a load's all
      // at its end. Nobody else may touch them in between.
      for (int row = 0; row < transfer.request_count; ++row) {
        schedule.requests.push_back({.instruction = i,
                                     .is_write = is_store,
                                     .issued = transfer.acquired + 1,
                                     .finished = transfer.finished});
      }
      schedule.transfers.push_back(transfer);
      ++number;
    }
  }
  return schedule;
}

std::string control_difference(const systolic::MachineConfig& config,
                               const systolic::Schedule& schedule, const EngineTrace& trace) {
  return ControlReplay(config, schedule, trace).run();
}

std::string register_difference(const systolic::MachineConfig& config,
                                const systolic::Schedule& schedule, const EngineTrace& trace,
                                systolic::MainMemory& memory) {
  systolic::MachineState state(config, memory.size());
  state.memory = memory;
  std::string difference;
  size_t writes = 0;
  const auto observe = [&](const systolic::ObservedCycle& observed) {
    if (!difference.empty()) {
      return;
    }
    const std::vector<uint32_t>& actual = trace.registers[static_cast<size_t>(observed.cycle)];
    const std::vector<uint32_t> expected =
        actual.empty() ? actual : systolic::dump(observed.registers);
    for (size_t i = 0; i < expected.size(); ++i) {
      if (actual[i] != expected[i]) {
        difference = fmt::format("cycle {}: {} is {:#x}, the simulator has {:#x}", observed.cycle,
                                 systolic::dump_name(config, i), actual[i], expected[i]);
        return;
      }
    }
    const bool written =
        writes < trace.writes.size() && trace.writes[writes].cycle == observed.cycle;
    if (written != (observed.write != nullptr)) {
      difference = fmt::format("cycle {}: a row of sums is {}written", observed.cycle,
                               written ? "" : "not ");
      return;
    }
    if (written) {
      const systolic::AccumulatorWrite& write = trace.writes[writes++];
      if (write.row != observed.write->row || write.data != observed.write->data) {
        difference = fmt::format("cycle {}: the row of sums {} is written, the simulator's {} {}",
                                 observed.cycle, write.row, observed.write->row,
                                 write.data == observed.write->data ? "" : "with other data");
      }
    }
  };
  systolic::run_reference(config, schedule, state, observe);
  memory = state.memory;
  return difference;
}

}  // namespace flashloom::rtl
