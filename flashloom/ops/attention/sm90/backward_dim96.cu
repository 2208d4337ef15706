#include "flashloom/ops/attention/sm90/backward_variants.cuh"

namespace flashloom::sm90 {

void launch_backward_96(const BackwardCall& call, std::byte* memory, cudaStream_t stream) {
  with_storage(call.inputs.q.dtype, [&](auto storage) {
    using T = decltype(storage);
    if (call.options.execution.deterministic) {
      launch_backward<Backward96<T, BackwardTurns::always>>(call, memory, stream);
    } else {
      launch_backward<Backward96<T, BackwardTurns::never>>(call, memory, stream);
    }
  });
}

}  // namespace flashloom::sm90
