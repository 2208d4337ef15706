#include "flashloom/ops/attention/portable/forward_launch.cuh"

namespace flashloom::portable {

template <>
void launch_forward<float>(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                           const AttentionOptions& options, Stream stream) {
  launch_forward_any<float>(outputs, inputs, options, DType::f32, stream);
}

}  // namespace flashloom::portable
