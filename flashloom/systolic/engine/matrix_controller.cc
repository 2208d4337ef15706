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
    : config_(config), idle_from_(static_cast<size_t>(config.slot_count())) {}

bool MatrixController::loads_shadow() const {
  return config_.shape.shadow && !queue_.empty() &&
         queue_.front().instruction.matrix_function() == Function::load_stationary;
}

bool MatrixController::slots_idle(int64_t cycle) const {
  return std::ranges::all_of(idle_from_, [&](int64_t from) { return cycle >= from; });
}

IssueState MatrixController::blocked(int64_t cycle, const Semaphores& semaphores) const {
  if (loads_shadow() ? cycle < idle_from_.back() || cycle < spad_free_
                     : cycle < idle_from_[static_cast<size_t>(next_slot_)] || cycle < array_free_) {
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
  const bool shadow = loads_shadow();
  step.issued = queue_.front();
  queue_.pop_front();
  const Instruction& instruction = step.issued.instruction;
  if (instruction[Field::acquire] != 0) {
    take(semaphore_of(semaphores, instruction, Field::semaphore), step.issued.index, cycle);
  }
  if (instruction[Field::second_acquire] != 0) {
    take(semaphore_of(semaphores, instruction, Field::second_semaphore), step.issued.index, cycle);
  }
  const int slot = shadow ? config_.controller.slots : next_slot_;
  step.at = {.instruction = step.issued.index, .slot = slot, .cycle = cycle};
  const Function function = instruction.matrix_function();
  const FunctionTiming& timing = plan_timing(function);
  const int64_t start = step.at.start();
  const int64_t idle = start + timing.busy.at(config_.shape);
  idle_from_[static_cast<size_t>(slot)] = idle;
  array_free_ = std::max(array_free_, start + timing.conflict_free.at(config_.shape));
  if (reads_spad(function)) {
    spad_free_ = start + timing.release.at(config_.shape);
  }
  if (!shadow) {
    next_slot_ = (next_slot_ + 1) % config_.controller.slots;
  }
  active_ += std::max<int64_t>(0, idle - std::max(start, active_until_));
  active_until_ = std::max(active_until_, idle);
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
  consider(array_free_);
  consider(spad_free_);
  return next;
}

}  // namespace flashloom::systolic
