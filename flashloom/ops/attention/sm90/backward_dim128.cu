#include "flashloom/ops/attention/sm90/backward_variants.cuh"

namespace flashloom::sm90 {
namespace {

// Steps of a block up to which blocks that stay are the faster ones: what they gain between two
// tiles of keys is more than what their loop loses. All visible: S 1024 (12 steps of 80 queries)
// 440 TFLOP/s, with blocks that stay 454, 2048 (25) 518 and 517. Causal: 2048 (12) 400 and 417,
// 4096 (25) 510 and 518, 16384 (102) 593 and 588.
constexpr int64_t kFewSteps = 20, kFewHalfSteps = 40;

/// Whether the blocks of a call for exactly 128 columns stay.
bool stays(const BackwardCall& call, int64_t queries) {
  const bool half = call.options.visibility.right >= 0;
  return steps_of_block(call.inputs, call.options, queries) < (half ? kFewHalfSteps : kFewSteps);
}

}  // namespace

void launch_backward_128(const BackwardCall& call, std::byte* memory, cudaStream_t stream) {
  with_storage(call.inputs.q.dtype, [&](auto storage) {
    using T = decltype(storage);
    constexpr BackwardTurns kNever = BackwardTurns::never, kAlways = BackwardTurns::always;
    using Staying = Backward128Exact<T, kNever, true>;
    if (is_exact<Staying>(call.inputs) && stays(call, Staying::kQueries)) {
      launch_backward_mode<Backward128<T>, Staying, Backward128Exact<T, kAlways, true>>(
          call, memory, stream);
    } else {
      launch_backward_mode<Backward128<T>, Backward128Exact<T, kNever, false>,
                           Backward128Exact<T, kAlways, false>>(call, memory, stream);
    }
  });
}

}  // namespace flashloom::sm90
