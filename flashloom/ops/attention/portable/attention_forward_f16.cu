#include "flashloom/ops/attention/portable/forward_launch.cuh"

namespace flashloom::portable {

template <>
void launch_forward<__half>(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                            const AttentionOptions& options, Stream stream) {
  launch_forward_any<__half>(outputs, inputs, options, DType::f16, stream);
}

}  // namespace flashloom::portable
