#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "flashloom/comm/communicator.h"
#include "flashloom/train/state_tensor.h"

namespace flashloom {

/// State tensors between rank 0, which alone writes and reads files, and the others: a checkpoint
/// is the same whatever the number of ranks that wrote it, and any number goes on from it. Rank 0
/// hands this to CheckpointFolders; the others call send_all() while it writes and receive_all()
/// while it reads, with their tensors in the same order.
class StateExchange final : public StateParts {
 public:
  explicit StateExchange(Communicator& communicator) : communicator_(communicator) {}

  // Rank 0.
  void collect(const StateTensor& tensor,
               FunctionRef<void(int64_t first, const ConstTensorView& piece)> take) override;
  void hand_out(const StateTensor& tensor, const ConstTensorView& stored) override;

  /// Nothing more is handed out.
  void end();

  // The other ranks.
  void send_all(std::span<const StateTensor> tensors);

  /// Fills the tensors that rank 0 hands out, up to its end(). True if there were any.
  bool receive_all(std::span<const StateTensor> tensors);

 private:
  bool more(bool value);

  Communicator& communicator_;
  std::vector<std::byte> buffer_;
};

}  // namespace flashloom
