#include "flashloom/ops/attention/portable/forward_launch.cuh"

namespace flashloom::portable {

template <>
void launch_forward<__nv_bfloat16>(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                                   const AttentionOptions& options, Stream stream) {
  launch_forward_any<__nv_bfloat16>(outputs, inputs, options, DType::bf16, stream);
}

}  // namespace flashloom::portable
