#include "flashloom/ops/attention/sm90/attention_sm90.h"
#include "flashloom/ops/attention/sm90/forward_launch.cuh"

namespace flashloom::sm90 {
namespace {

// Tiles of the forward pass: warpgroups of 64 queries, keys, stages of keys, stages of queries,
// turns. docs/kernels/attention.md names the runs that chose them.
template <class T>
using Forward128 = ForwardShape<T, 128, 2, 128, 2, 2, true>;
template <class T>
using Forward64 = ForwardShape<T, 64, 3, 128, 3, 2, true>;

template <class T>
void forward(const AttentionOutputs& outputs, const AttentionInputs& inputs, int32_t* counter,
             const AttentionOptions& options, cudaStream_t stream) {
  if (inputs.q.shape[inputs.q.rank - 1] == 128) {
    launch_forward<Forward128<T>>(outputs, inputs, counter, options, stream);
  } else {
    launch_forward<Forward64<T>>(outputs, inputs, counter, options, stream);
  }
}

// Blocks draw their tiles where these differ in length.
bool draws_tiles(const AttentionOptions& options) {
  return options.visibility.right >= 0 || options.visibility.left >= 0 ||
         options.sequences.cu_query || options.sequences.used_query || options.sequences.used_key;
}

}  // namespace

int64_t attention_forward_bytes(const AttentionInputs& /*inputs*/,
                                const AttentionOptions& options) {
  return draws_tiles(options) ? 64 : 0;
}

void attention_forward(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                       std::span<std::byte> workspace, const AttentionOptions& options,
                       Stream stream) {
  auto* counter = draws_tiles(options) ? reinterpret_cast<int32_t*>(workspace.data()) : nullptr;
  auto* queue = static_cast<cudaStream_t>(stream.handle);
  if (inputs.q.dtype == DType::bf16) {
    forward<__nv_bfloat16>(outputs, inputs, counter, options, queue);
  } else {
    forward<__half>(outputs, inputs, counter, options, queue);
  }
}

}  // namespace flashloom::sm90
