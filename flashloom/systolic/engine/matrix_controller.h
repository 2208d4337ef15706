#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <vector>

#include "flashloom/systolic/engine/schedule.h"
#include "flashloom/systolic/engine/semaphores.h"

namespace flashloom::systolic {

/// The matrix queue and the slots: decides when its head issues. One call of step() a cycle at
/// most; cycles in which nothing can change may be left out. Loads of a shadow register have a slot
/// of their own: they share only the scratchpad's port with what runs.
class MatrixController {
 public:
  explicit MatrixController(const MachineConfig& config);

  bool has_room() const {
    return queue_.size() < static_cast<size_t>(config_.controller.matrix_queue);
  }

  void push(const Instruction& instruction, int index) { queue_.push_back({instruction, index}); }

  struct Entry {
    Instruction instruction;
    int index;
  };

  struct Step {
    IssueState state;
    Entry issued;  // if state is issued
    MatrixIssue at;
  };

  /// What cycle t brings; takes semaphores.
  Step step(int64_t cycle, Semaphores& semaphores);

  bool idle(int64_t cycle) const { return queue_.empty() && slots_idle(cycle); }

  bool slots_idle(int64_t cycle) const;

  /// First cycle after this one in which slots alone may allow an issue or end a wait; -1 if none.
  int64_t next_change(int64_t cycle) const;

  const Entry* head() const { return queue_.empty() ? nullptr : &queue_.front(); }

  /// Cycles with a busy slot, up to the last issue.
  int64_t active_cycles() const { return active_; }

 private:
  IssueState blocked(int64_t cycle, const Semaphores& semaphores) const;
  bool loads_shadow() const;  // the head

  MachineConfig config_;
  std::deque<Entry> queue_;
  std::vector<int64_t> idle_from_;  // of each slot; the last is that of shadow registers
  int next_slot_ = 0;
  int64_t array_free_ = 0;  // every instruction is idle or at its conflict_free cycle
  int64_t spad_free_ = 0;   // the scratchpad's port: what a load of shadow registers waits for
  int64_t active_ = 0;
  int64_t active_until_ = 0;
};

}  // namespace flashloom::systolic
