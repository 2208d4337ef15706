#include "flashloom/ops/attention/portable/reference.h"
#include "flashloom/ops/attention/portable/reference_launch.cuh"

namespace flashloom::portable {

int64_t attention_reference_forward_bytes(const AttentionInputs& inputs,
                                          const AttentionOptions& options) {
  const ReferenceGateBytes bytes(geometry_source(inputs, options), options.gate);
  return bytes.bitmap + bytes.numbers;
}

int64_t attention_reference_backward_bytes(const AttentionInputs& inputs,
                                           const AttentionOptions& options) {
  const GeometrySource source = geometry_source(inputs, options);
  return int64_t{source.sequences} * source.heads * source.max_query *
         static_cast<int64_t>(sizeof(ReferenceRowNumbers<double>));
}

void attention_forward_reference(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                                 std::span<std::byte> workspace, const AttentionOptions& options,
                                 Stream stream) {
  reference_forward<double>(outputs, inputs, workspace, options, stream, DType::f64);
}

void attention_backward_reference(const AttentionGradients& gradients,
                                  const AttentionInputs& inputs, const AttentionSaved& saved,
                                  std::span<std::byte> workspace, const AttentionOptions& options,
                                  Stream stream) {
  reference_backward<double>(gradients, inputs, saved, workspace, options, stream, DType::f64);
}

}  // namespace flashloom::portable
