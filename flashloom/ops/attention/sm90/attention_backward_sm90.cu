#include "flashloom/ops/attention/sm90/attention_sm90.h"
#include "flashloom/ops/attention/sm90/backward_launch.cuh"

namespace flashloom::sm90 {
namespace {

template <class T>
using Backward128 = BackwardShape<T, 128, 2>;
template <class T>
using Backward64 = BackwardShape<T, 64, 2>;

template <class T>
void backward(const AttentionGradients& gradients, const AttentionInputs& inputs,
              const AttentionSaved& saved, std::byte* workspace, const AttentionOptions& options,
              cudaStream_t stream) {
  if (inputs.q.shape[inputs.q.rank - 1] == 128) {
    launch_backward<Backward128<T>>(gradients, inputs, saved, workspace, options, stream);
  } else {
    launch_backward<Backward64<T>>(gradients, inputs, saved, workspace, options, stream);
  }
}

}  // namespace

int64_t attention_backward_bytes(const AttentionInputs& inputs, const AttentionOptions& options) {
  const ConstTensorView q = as_batched(inputs.q);
  const int64_t dim = q.shape[3];
  const int64_t queries = dim == 128 ? Backward128<__half>::kQueries : Backward64<__half>::kQueries;
  return backward_workspace(make_problem(q, as_batched(inputs.k), options), dim, queries).end;
}

void attention_backward(const AttentionGradients& gradients, const AttentionInputs& inputs,
                        const AttentionSaved& saved, std::span<std::byte> workspace,
                        const AttentionOptions& options, Stream stream) {
  auto* queue = static_cast<cudaStream_t>(stream.handle);
  if (inputs.q.dtype == DType::bf16) {
    backward<__nv_bfloat16>(gradients, inputs, saved, workspace.data(), options, queue);
  } else {
    backward<__half>(gradients, inputs, saved, workspace.data(), options, queue);
  }
}

}  // namespace flashloom::sm90
