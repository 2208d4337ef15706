#include "flashloom/ops/attention/sm90/backward_variants.cuh"

namespace flashloom::sm90 {
namespace {

// Blocks of so few steps lose more where late dQ starts and ends than it gains: at S 1024 and
// causal (4 steps) 269 TFLOP/s with it in turn and not late, 261 late; at 2048 (8) 362 and 368.
constexpr int64_t kFewSteps = 6;

}  // namespace

void launch_backward_64(const BackwardCall& call, std::byte* memory, cudaStream_t stream) {
  with_storage(call.inputs.q.dtype, [&](auto storage) {
    using T = decltype(storage);
    using Fast = Backward64<T, true, BackwardTurns::never>;
    if (is_exact<Fast>(call.inputs) &&
        steps_of_block(call.inputs, call.options, Fast::kQueries) < kFewSteps) {
      launch_backward_in_turn<Backward64<T, true, BackwardTurns::always, false>>(call, memory,
                                                                                 stream);
    } else {
      launch_backward_mode<Backward64<T, false, BackwardTurns::maybe>, Fast,
                           Backward64<T, true, BackwardTurns::always>>(call, memory, stream);
    }
  });
}

}  // namespace flashloom::sm90
