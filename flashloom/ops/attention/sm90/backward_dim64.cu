#include <algorithm>

#include "flashloom/ops/attention/sm90/backward_variants.cuh"

namespace flashloom::sm90 {
namespace {

/// Tiles of queries that a block walks for a head, on average.
int64_t steps_of_block(const AttentionInputs& inputs, const AttentionOptions& options,
                       int64_t tile) {
  const int64_t documents = options.sequences.cu_query ? options.sequences.cu_query.dim(0) - 1 : 1;
  const int64_t rows = inputs.q.dim(-2) / std::max<int64_t>(documents, 1);
  return rows / tile / (options.visibility.right >= 0 ? 2 : 1);
}

// Blocks of so few steps lose more where late dQ starts and ends than it gains: at S 1024 and
// causal (4 steps) 269 TFLOP/s with it in turn and not late, 261 late; at 2048 (8) 362 and 368.
constexpr int64_t kFewSteps = 6;

}  // namespace

void launch_backward_64(const BackwardCall& call, std::byte* memory, cudaStream_t stream) {
  with_storage(call.inputs.q.dtype, [&](auto storage) {
    using T = decltype(storage);
    using Fast = Backward64<T, true, BackwardTurns::never>;
    const bool exact = call.inputs.q.dim(-1) == Fast::kDim && call.inputs.v.dim(-1) == Fast::kDim;
    if (exact && steps_of_block(call.inputs, call.options, Fast::kQueries) < kFewSteps) {
      AttentionOptions options = call.options;
      options.execution.deterministic = true;
      launch_backward<Backward64<T, true, BackwardTurns::always, false>>(
          {call.gradients, call.inputs, call.saved, options}, memory, stream);
    } else {
      launch_backward_mode<Backward64<T, false, BackwardTurns::maybe>, Fast,
                           Backward64<T, true, BackwardTurns::always>>(call, memory, stream);
    }
  });
}

}  // namespace flashloom::sm90
