#pragma once

#include <cstdint>
#include <deque>

#include "flashloom/systolic/engine/schedule.h"
#include "flashloom/systolic/engine/semaphores.h"
#include "flashloom/systolic/memory/memory_timing.h"

namespace flashloom::systolic {

/// Loads and stores, each kind in its own queue, in order. A head takes its semaphore, at most one
/// of a kind a cycle, and its rows go out from the next cycle on: cut contiguously over the ports,
/// the remainder to the first ones, a row a port and cycle.
class DmaController {
 public:
  explicit DmaController(const MachineConfig& config) : config_(config), memory_(config) {}

  bool has_room(bool is_store) const {
    return is_store ? stores_.size() < static_cast<size_t>(config_.dma.store_queue)
                    : loads_.size() < static_cast<size_t>(config_.dma.load_queue);
  }

  struct Entry {
    Instruction instruction;
    int index;
  };

  void push(const Instruction& instruction, int index) {
    (instruction.is_store() ? stores_ : loads_).push_back({instruction, index});
  }

  /// Starts the head of a queue if its semaphore can be taken; the transfer and, if `keep`, its
  /// rows go to the schedule. Null if nothing starts.
  const DmaTransfer* start(bool is_store, int64_t cycle, Semaphores& semaphores, Schedule& schedule,
                           bool keep);

  void finish() { --under_way_; }

  bool idle() const { return loads_.empty() && stores_.empty() && under_way_ == 0; }

  const Entry* head(bool is_store) const {
    const std::deque<Entry>& queue = is_store ? stores_ : loads_;
    return queue.empty() ? nullptr : &queue.front();
  }

  const Entry& started() const { return started_; }

 private:
  MachineConfig config_;
  MemoryTiming memory_;
  std::deque<Entry> loads_;
  std::deque<Entry> stores_;
  Entry started_ = {};
  int under_way_ = 0;
};

}  // namespace flashloom::systolic
