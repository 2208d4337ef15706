#include "flashloom/ops/attention/sm90/attention_sm90.h"
#include "flashloom/ops/attention/sm90/backward_variants.cuh"

namespace flashloom::sm90 {
namespace {

template <class T>
void launch(const BackwardCall& call, std::byte* memory, cudaStream_t stream) {
  if (call.inputs.q.dim(-1) == 128) {
    launch_backward<Backward128<T>>(call, memory, stream);
  } else {
    launch_backward<Backward64<T>>(call, memory, stream);
  }
}

}  // namespace

int64_t attention_backward_bytes(const AttentionInputs& inputs, const AttentionOptions& options) {
  const bool wide = inputs.q.dim(-1) == 128;
  const bool general = is_general(options);
  const int64_t queries =
      wide ? (general ? BackwardGeneral128<__half>::kQueries : Backward128<__half>::kQueries)
           : (general ? BackwardGeneral64<__half>::kQueries : Backward64<__half>::kQueries);
  return backward_workspace(inputs, options, queries).end;
}

void attention_backward(const AttentionGradients& gradients, const AttentionInputs& inputs,
                        const AttentionSaved& saved, std::span<std::byte> workspace,
                        const AttentionOptions& options, Stream stream) {
  auto* queue = static_cast<cudaStream_t>(stream.handle);
  const BackwardCall call = {gradients, inputs, saved, options};
  if (is_general(options)) {
    launch_backward_general(call, workspace.data(), queue);
  } else if (inputs.q.dtype == DType::bf16) {
    launch<__nv_bfloat16>(call, workspace.data(), queue);
  } else {
    launch<__half>(call, workspace.data(), queue);
  }
}

}  // namespace flashloom::sm90
