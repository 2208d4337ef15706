#include "flashloom/ops/attention/sm90/backward_variants.cuh"

namespace flashloom::sm90 {
namespace {

template <class T>
void launch(const BackwardCall& call, std::byte* memory, cudaStream_t stream) {
  if (call.inputs.q.dim(-1) == 128) {
    launch_backward<BackwardGeneral128<T>>(call, memory, stream);
  } else {
    launch_backward<BackwardGeneral64<T>>(call, memory, stream);
  }
}

}  // namespace

void launch_backward_general(const BackwardCall& call, std::byte* memory, cudaStream_t stream) {
  if (call.inputs.q.dtype == DType::bf16) {
    launch<__nv_bfloat16>(call, memory, stream);
  } else {
    launch<__half>(call, memory, stream);
  }
}

}  // namespace flashloom::sm90
