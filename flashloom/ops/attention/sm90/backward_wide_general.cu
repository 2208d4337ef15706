#include "flashloom/ops/attention/sm90/backward_wide.cuh"

namespace flashloom::sm90 {

void launch_backward_wide_general(const BackwardCall& call, std::byte* memory,
                                  cudaStream_t stream) {
  launch_wide_storage<true>(call, memory, stream);
}

}  // namespace flashloom::sm90
