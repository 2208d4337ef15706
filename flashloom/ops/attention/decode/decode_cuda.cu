#include "flashloom/ops/attention/decode/decode_shapes.cuh"

namespace flashloom::decode {

int64_t attention_decode_bytes(const AttentionInputs& inputs, const AttentionOptions& options) {
  // The plan does not depend on which of the two 16-bit types it is.
  return with_shape<__half>(
      inputs, options, [&]<class Shape>() { return make_plan<Shape>(inputs, options).bytes(); });
}

void attention_decode(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                      std::span<std::byte> workspace, const AttentionOptions& options,
                      Stream stream) {
  auto* queue = static_cast<cudaStream_t>(stream.handle);
  if (inputs.q.dtype == DType::bf16) {
    run_decode<__nv_bfloat16>(outputs, inputs, workspace, options, queue);
  } else {
    run_decode<__half>(outputs, inputs, workspace, options, queue);
  }
}

}  // namespace flashloom::decode
