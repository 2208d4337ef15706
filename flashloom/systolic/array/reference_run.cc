#include "flashloom/systolic/array/reference_run.h"

#include <algorithm>

namespace flashloom::systolic {
namespace {

// A row's move in its cycle.
struct Move {
  int64_t cycle;
  int instruction;
  int64_t row;
  bool is_store;
};

std::vector<Move> moves_of(const Schedule& schedule) {
  std::vector<Move> moves;
  for (const DmaTransfer& transfer : schedule.transfers) {
    for (int i = 0; i < transfer.request_count; ++i) {
      const MemoryRequest& request = schedule.requests[transfer.first_request + i];
      moves.push_back({.cycle = request.is_write ? request.issued : request.finished,
                       .instruction = transfer.instruction,
                       .row = i,
                       .is_store = request.is_write});
    }
  }
  std::ranges::stable_sort(moves, {}, &Move::cycle);
  return moves;
}

}  // namespace

void run_reference(const MachineConfig& config, const Schedule& schedule, MachineState& state,
                   FunctionRef<void(const ObservedCycle&)> observe) {
  RegisterArray array(config);
  const std::vector<Move> moves = moves_of(schedule);
  std::vector<ActiveInstruction> active;
  size_t next_move = 0;
  size_t next_issue = 0;
  for (int64_t cycle = 0; cycle < schedule.cycles; ++cycle) {
    std::erase_if(active, [&](const ActiveInstruction& of) {
      const int busy = plan_timing(of.instruction.matrix_function()).busy.at(config.shape);
      return cycle >= of.start + busy;
    });
    while (next_issue < schedule.issues.size() && schedule.issues[next_issue].start() <= cycle) {
      const MatrixIssue& issue = schedule.issues[next_issue++];
      active.push_back({schedule.program[static_cast<size_t>(issue.instruction)], issue.start()});
    }
    // Stores read what was there at the cycle's beginning, loads are seen from the next one on.
    size_t last_move = next_move;
    for (; last_move < moves.size() && moves[last_move].cycle <= cycle; ++last_move) {
      if (moves[last_move].is_store) {
        move_row(config, schedule.program[static_cast<size_t>(moves[last_move].instruction)],
                 moves[last_move].row, state);
      }
    }
    const ArrayDrive drive = drive_of(config, active, cycle);
    const ArrayState before = array.state();
    array.step(drive, state.spad, state.accumulators);
    observe({cycle, before, drive, array.last_write()});
    for (; next_move < last_move; ++next_move) {
      if (!moves[next_move].is_store) {
        move_row(config, schedule.program[static_cast<size_t>(moves[next_move].instruction)],
                 moves[next_move].row, state);
      }
    }
  }
}

}  // namespace flashloom::systolic
