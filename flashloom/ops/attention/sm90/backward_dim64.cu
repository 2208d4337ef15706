#include "flashloom/ops/attention/sm90/backward_variants.cuh"

namespace flashloom::sm90 {

void launch_backward_64(const BackwardCall& call, std::byte* memory, cudaStream_t stream) {
  with_storage(call.inputs.q.dtype, [&](auto storage) {
    using T = decltype(storage);
    launch_backward_mode<Backward64<T, false, BackwardTurns::maybe>,
                         Backward64<T, true, BackwardTurns::never>,
                         Backward64<T, true, BackwardTurns::always>>(call, memory, stream);
  });
}

}  // namespace flashloom::sm90
