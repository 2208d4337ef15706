#include "flashloom/ops/attention/sm90/attention_sm90.h"
#include "flashloom/ops/attention/sm90/forward_band_call.cuh"

namespace flashloom::sm90 {
namespace {

template <class T>
void forward(const ForwardCall& call) {
  const AttentionInputs& inputs = call.inputs;
  const AttentionOptions& options = call.options;
  const int64_t dim =
      std::max(inputs.q.shape[inputs.q.rank - 1], inputs.v.shape[inputs.v.rank - 1]);
  const bool blocks = options.blocks.block_rows > 0;
  if (has_rule(options) || (blocks && dim > 128)) {
    launch_forward_general<T>(call, dim);
  } else if (blocks) {
    launch_forward_blocks<T>(call, dim);
  } else if (const auto shift = forward_band_shift(call);
             shift && forward_band_pays(call, *shift)) {
    launch_forward_band<T>(call, *shift);
  } else if (dim <= 64) {
    launch_forward_64<T>(call);
  } else if (dim <= 128) {
    launch_forward_128<T>(call, dim);
  } else {
    launch_forward_256<T>(call, dim);
  }
}

// Blocks draw their tiles where these differ in length; those of a window do not.
bool draws_tiles(const AttentionOptions& options) {
  const bool bounded = options.visibility.right >= 0 || options.visibility.left >= 0;
  const bool window = options.visibility.right >= 0 && options.visibility.left >= 0;
  return (bounded && !window) || options.sequences.cu_query || options.sequences.used_query ||
         options.sequences.used_key || options.blocks.block_rows > 0;
}

// The order of a block mask's tiles lies behind the counter.
constexpr int64_t kOrderOffset = 64;  // bytes

// Whether the tiles of a block mask are put in order. Those of packed sequences are not known to
// the host.
bool orders_tiles(const AttentionOptions& options) {
  return options.blocks.block_rows > 0 && !options.sequences.cu_query;
}

}  // namespace

int64_t attention_forward_bytes(const AttentionInputs& inputs, const AttentionOptions& options) {
  if (orders_tiles(options)) {
    const ConstTensorView q = as_batched(inputs.q);
    const int64_t tiles = (q.shape[2] + kListedRows - 1) / kListedRows;
    return kOrderOffset + tiles * q.shape[0] * q.shape[1] * int64_t{sizeof(int32_t)};
  }
  return draws_tiles(options) ? kOrderOffset : 0;
}

void attention_forward(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                       std::span<std::byte> workspace, const AttentionOptions& options,
                       Stream stream) {
  auto* counter = draws_tiles(options) ? reinterpret_cast<int32_t*>(workspace.data()) : nullptr;
  int32_t* order =
      orders_tiles(options) ? reinterpret_cast<int32_t*>(workspace.data() + kOrderOffset) : nullptr;
  const ForwardCall call = {outputs, inputs, options,
                            counter, order,  static_cast<cudaStream_t>(stream.handle)};
  if (inputs.q.dtype == DType::bf16) {
    forward<__nv_bfloat16>(call);
  } else {
    forward<__half>(call);
  }
}

}  // namespace flashloom::sm90
