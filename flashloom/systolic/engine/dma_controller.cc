#include "flashloom/systolic/engine/dma_controller.h"

#include <algorithm>

#include "flashloom/core/parallel.h"

namespace flashloom::systolic {

const DmaTransfer* DmaController::start(bool is_store, int64_t cycle, Semaphores& semaphores,
                                        Schedule& schedule, bool keep) {
  std::deque<Entry>& queue = is_store ? stores_ : loads_;
  if (queue.empty()) {
    return nullptr;
  }
  const Instruction& instruction = queue.front().instruction;
  Semaphore& semaphore = semaphores[static_cast<size_t>(instruction[Field::semaphore])];
  if (instruction[Field::acquire] != 0) {
    if (!semaphore.available(instruction[Field::acquire_value])) {
      return nullptr;
    }
    semaphore.busy = true;
    semaphore.holder = queue.front().index;
    semaphore.since = cycle;
  }
  started_ = queue.front();
  queue.pop_front();
  DmaTransfer transfer{.instruction = started_.index,
                       .acquired = cycle,
                       .finished = cycle + 1,
                       .first_request = schedule.requests.size()};
  const auto rows = static_cast<int>(started_.instruction[Field::repeat]);
  const int ports = config_.port_count();
  if (keep) {
    transfer.request_count = rows;
    schedule.requests.resize(transfer.first_request + static_cast<size_t>(rows));
  }
  int64_t read_until = cycle + 1;
  // A row of every port, then the next of every port: the order in which memory sees them.
  for (int i = 0; i < tile_count(rows, ports); ++i) {
    for (int port = 0; port < ports; ++port) {
      const int share = rows / ports + (port < rows % ports ? 1 : 0);
      if (i >= share) {
        continue;
      }
      const int row = port * (rows / ports) + std::min(port, rows % ports) + i;
      MemoryRequest request{
          .instruction = started_.index,
          .port = port,
          .is_write = is_store,
          .address = started_.instruction[Field::memory_address] +
                     row * started_.instruction[Field::memory_stride],
          .bytes = static_cast<int>(started_.instruction[Field::row_bytes]),
          .issued = cycle + 1,
      };
      memory_.request(request);
      transfer.finished = std::max(transfer.finished, request.finished);
      read_until = std::max(read_until, request.issued);
      (is_store ? schedule.bytes_written : schedule.bytes_read) += request.bytes;
      if (keep) {
        schedule.requests[transfer.first_request + static_cast<size_t>(row)] = request;
      }
    }
  }
  // The published stores let go of their semaphore after the last read of the SRAM.
  if (is_store && config_.compat) {
    transfer.finished = read_until;
  }
  ++under_way_;
  schedule.transfers.push_back(transfer);
  return &schedule.transfers.back();
}

}  // namespace flashloom::systolic
