#include "flashloom/systolic/engine/matrix_controller.h"

#include <algorithm>

namespace flashloom::systolic {
namespace {

Semaphore& semaphore_of(Semaphores& semaphores, const Instruction& instruction, Field field) {
  return semaphores[static_cast<size_t>(instruction[field])];
}

void take(Semaphore& semaphore, int index, int64_t cycle) {
  semaphore.busy = true;
  semaphore.holder = index;
  semaphore.since = cycle;
}

IssueState waits_for_first(Function function) {
  switch (planned_as(function)) {
    case Function::load_stationary:
      return IssueState::waits_query;
    case Function::score:
      return IssueState::waits_key;
    case Function::value:
      return IssueState::waits_value;
    default:
      return IssueState::waits_other;
  }
}

}  // namespace

MatrixController::MatrixController(const MachineConfig& config)
    : config_(config), idle_from_(static_cast<size_t>(config.controller.slots)) {}

bool MatrixController::slots_idle(int64_t cycle) const {
  return std::ranges::all_of(idle_from_, [&](int64_t from) { return cycle >= from; });
}

IssueState MatrixController::blocked(int64_t cycle, const Semaphores& semaphores) const {
  if (cycle < idle_from_[static_cast<size_t>(next_slot_)] ||
      (cycle < previous_idle_ && cycle < previous_conflict_free_)) {
    return IssueState::array;
  }
  if (queue_.empty()) {
    return IssueState::no_instruction;
  }
  const Instruction& instruction = queue_.front().instruction;
  if ((instruction[Field::wait_previous] != 0 || config_.controller.serial) && !slots_idle(cycle)) {
    return IssueState::drain;
  }
  if (instruction[Field::acquire] != 0 &&
      !semaphores[static_cast<size_t>(instruction[Field::semaphore])].available(
          instruction[Field::acquire_value])) {
    return waits_for_first(instruction.matrix_function());
  }
  if (instruction[Field::second_acquire] != 0 &&
      !semaphores[static_cast<size_t>(instruction[Field::second_semaphore])].available(
          instruction[Field::second_acquire_value])) {
    return IssueState::waits_output;
  }
  return IssueState::issued;
}

MatrixController::Step MatrixController::step(int64_t cycle, Semaphores& semaphores) {
  Step step{.state = blocked(cycle, semaphores)};
  if (step.state != IssueState::issued) {
    return step;
  }
  step.issued = queue_.front();
  queue_.pop_front();
  const Instruction& instruction = step.issued.instruction;
  if (instruction[Field::acquire] != 0) {
    take(semaphore_of(semaphores, instruction, Field::semaphore), step.issued.index, cycle);
  }
  if (instruction[Field::second_acquire] != 0) {
    take(semaphore_of(semaphores, instruction, Field::second_semaphore), step.issued.index, cycle);
  }
  step.at = {.instruction = step.issued.index, .slot = next_slot_, .cycle = cycle};
  const FunctionTiming& timing = plan_timing(instruction.matrix_function());
  const int64_t start = step.at.start();
  previous_idle_ = start + timing.busy.at(config_.shape);
  previous_conflict_free_ = start + timing.conflict_free.at(config_.shape);
  idle_from_[static_cast<size_t>(next_slot_)] = previous_idle_;
  next_slot_ = (next_slot_ + 1) % static_cast<int>(idle_from_.size());
  active_ += std::max<int64_t>(0, previous_idle_ - std::max(start, active_until_));
  active_until_ = std::max(active_until_, previous_idle_);
  return step;
}

int64_t MatrixController::next_change(int64_t cycle) const {
  int64_t next = -1;
  const auto consider = [&](int64_t at) {
    if (at > cycle && (next < 0 || at < next)) {
      next = at;
    }
  };
  for (const int64_t from : idle_from_) {
    consider(from);
  }
  consider(previous_conflict_free_);
  return next;
}

}  // namespace flashloom::systolic
