#include "flashloom/ops/attention/sm90/backward_variants.cuh"

namespace flashloom::sm90 {

void launch_backward_96(const BackwardCall& call, std::byte* memory, cudaStream_t stream) {
  with_storage(call.inputs.q.dtype, [&](auto storage) {
    launch_backward<Backward96<decltype(storage)>>(call, memory, stream);
  });
}

}  // namespace flashloom::sm90
