#include "flashloom/ops/attention/attention_test_device_loops.h"
#include "flashloom/ops/attention/portable/reference_launch.cuh"

namespace flashloom::attention_test {

void device_loops_forward(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                          std::span<std::byte> workspace, const AttentionOptions& options,
                          Stream stream) {
  portable::reference_forward<float>(outputs, inputs, workspace, options, stream, inputs.q.dtype);
}

void device_loops_backward(const AttentionGradients& gradients, const AttentionInputs& inputs,
                           const AttentionSaved& saved, std::span<std::byte> workspace,
                           const AttentionOptions& options, Stream stream) {
  portable::reference_backward<float>(gradients, inputs, saved, workspace, options, stream,
                                      inputs.q.dtype);
}

}  // namespace flashloom::attention_test
