#include "flashloom/ops/attention/sm90/backward_variants.cuh"

namespace flashloom::sm90 {

void launch_backward_masked(const BackwardCall& call, std::byte* memory, cudaStream_t stream) {
  if (is_for_lists(call)) {
    launch_backward_lists(call, memory, stream);
    return;
  }
  with_storage(call.inputs.q.dtype, [&](auto storage) {
    using T = decltype(storage);
    if (backward_width(call.inputs) > 64) {
      launch_backward<BackwardMasked128<T>>(call, memory, stream);
    } else {
      launch_backward<BackwardMasked64<T>>(call, memory, stream);
    }
  });
}

}  // namespace flashloom::sm90
