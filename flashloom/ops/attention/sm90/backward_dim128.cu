#include "flashloom/ops/attention/sm90/backward_variants.cuh"

namespace flashloom::sm90 {
namespace {

// Steps of a block up to which blocks that stay are the faster ones: what they gain between two
// tiles of keys is more than what their loop loses. All visible: S 1024 (12 steps of 80 queries)
// 440 TFLOP/s, with blocks that stay 454, 2048 (25) 518 and 517. Causal: 2048 (12) 400 and 417,
// 4096 (25) 510 and 518, 16384 (102) 593 and 588.
constexpr int64_t kFewSteps = 20, kFewHalfSteps = 40;

/// Whether the fast kernel's blocks stay.
template <class Fast>
bool stays(const BackwardCall& call) {
  const bool half = call.options.visibility.right >= 0;
  return is_exact<Fast>(call.inputs) && !call.options.execution.deterministic &&
         steps_of_block(call.inputs, call.options, Fast::kQueries) <
             (half ? kFewHalfSteps : kFewSteps);
}

}  // namespace

void launch_backward_128(const BackwardCall& call, std::byte* memory, cudaStream_t stream) {
  with_storage(call.inputs.q.dtype, [&](auto storage) {
    using T = decltype(storage);
    using Staying = Backward128Fast<T, true>;
    if (stays<Staying>(call)) {
      launch_backward<Staying>(call, memory, stream);
    } else {
      launch_backward_mode<Backward128<T, false>, Backward128Fast<T, false>, Backward128<T, true>>(
          call, memory, stream);
    }
  });
}

}  // namespace flashloom::sm90
