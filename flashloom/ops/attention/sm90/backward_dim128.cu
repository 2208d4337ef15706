#include "flashloom/ops/attention/sm90/backward_variants.cuh"

namespace flashloom::sm90 {
namespace {

// Steps of a block up to which blocks that stay are the faster ones: what they gain between two
// tiles of keys, and by sums that are converted beside them, is more than what their loop loses.
// All visible: S 2048 (25 steps of 80 queries) 518 TFLOP/s, with blocks that stay 542, 4096 (51)
// 583 and 594, 8192 (102) 632 and 626. Causal: 8192 (51) the same, 32/8 heads 524 and 556.
constexpr int64_t kFewSteps = 64;
// The same where sums take turns. All visible: 2048 (25 steps) 467 and 478, 4096 (51) 547 and 544,
// 8192 580 and 572. Causal: 4096 (25) 465 and 488, 8192 (51) 548 and 560, 16384 593 and 599, but
// 32/8 heads 8192 551 and 523.
constexpr int64_t kFewStepsInTurn = 40, kFewHalfStepsInTurn = 160;

/// Whether the blocks of a call for exactly 128 columns stay.
bool stays(const BackwardCall& call, int64_t queries) {
  const bool half = call.options.visibility.right >= 0;
  const bool grouped = call.inputs.q.dim(-3) != call.inputs.k.dim(-3);
  const int64_t few = !call.options.execution.deterministic ? kFewSteps
                      : half && !grouped                    ? kFewHalfStepsInTurn
                                                            : kFewStepsInTurn;
  return steps_of_block(call.inputs, call.options, queries) < few;
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
