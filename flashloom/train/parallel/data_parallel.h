#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "flashloom/comm/communicator.h"
#include "flashloom/core/memory_plan.h"
#include "flashloom/models/parameter.h"
#include "flashloom/train/parallel/shards.h"

namespace flashloom {

/// What ranks exchange in an optimizer step: each has all weights and the gradients of its own
/// micro-batches; gradients are summed so that each rank has the sum of its range, and what each
/// updates is gathered again. Of n ranks each sends (n - 1) / n of the gradients (f32) and of the
/// trained weights a step, the least there is. Alone, nothing is exchanged and nothing planned.
class DataParallel {
 public:
  /// Parameters need shapes only. Borrows the communicator. Plans the buffers of the exchange.
  DataParallel(Communicator& communicator, std::span<const Parameter> parameters, MemoryPlan& plan);

  /// The same parameters with their memory.
  void bind(const Arena& arena, std::span<const Parameter> parameters);

  /// This rank's range of every gradient becomes the sum over all ranks, added in the order of the
  /// communicator; the rest keeps what this rank computed.
  void reduce_gradients();

  /// Every rank's range of every trained weight goes to all.
  void gather_parameters();

  /// Sums over ranks, in place.
  void sum(std::span<double> values);

  /// True on every rank if any of them says so.
  bool any(bool value);

  const Shards& shards() const { return shards_; }

  RankOf place() const { return {communicator_.rank(), communicator_.size()}; }

  Communicator& communicator() { return communicator_; }

 private:
  struct Piece {
    std::byte* memory = nullptr;
    int64_t bytes = 0;
  };

  // A rank's range as the pieces of memory that it consists of here.
  using Range = std::vector<Piece>;

  int64_t longest(const std::vector<Range>& ranges) const;

  Communicator& communicator_;
  Shards shards_;
  MemoryPlan::Id rows_id_ = -1, own_id_ = -1;
  TensorView rows_;  // (ranks, bucket) u8: what goes to, or came from, each rank
  TensorView own_;   // (bucket) u8
  std::vector<Range> gradients_, weights_;  // of each rank
};

/// Numbers that all ranks must agree in, such as checksums of model and data: throws Error naming
/// `what` and the first rank that differs from rank 0, on every rank.
void require_same(Communicator& communicator, std::string_view what, std::string_view value);

/// The least of all ranks' values.
int64_t least_of_ranks(Communicator& communicator, int64_t value);

}  // namespace flashloom
