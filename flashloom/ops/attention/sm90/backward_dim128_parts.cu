#include "flashloom/ops/attention/sm90/backward_variants.cuh"

// A file of its own also because kernels of one file that run at a time would share what a debug
// build keeps by number of block.

namespace flashloom::sm90 {

template <class T>
void launch_backward_parts(const BackwardParams& params, const BackwardMaps& maps, int32_t blocks,
                           cudaStream_t stream) {
  using Whole = Backward128Exact<T, BackwardTurns::never, false>;
  using Shape = BackwardShape<T, Whole::parts_form()>;
  launch_backward_kernel<Shape>(&attention_backward_kernel<Shape>, "attention_backward_kernel",
                                static_cast<uint32_t>(blocks), params, maps, true, stream);
}

template void launch_backward_parts<__half>(const BackwardParams&, const BackwardMaps&, int32_t,
                                            cudaStream_t);
template void launch_backward_parts<__nv_bfloat16>(const BackwardParams&, const BackwardMaps&,
                                                   int32_t, cudaStream_t);

}  // namespace flashloom::sm90
