#include "flashloom/ops/attention/sm90/backward_lists_launch.cuh"
#include "flashloom/ops/attention/sm90/backward_variants.cuh"

namespace flashloom::sm90 {
namespace {

template <class T, BackwardTurns kTurns>
using Lists128 = BackwardShape<T, BackwardForm{.dim = 128,
                                               .queries = 80,
                                               .swapped = true,
                                               .late = true,
                                               .lists = true,
                                               .adjusts = false,
                                               .exact = true,
                                               .turns = kTurns,
                                               .stays = true}>;
template <class T, BackwardTurns kTurns>
using Lists64 = BackwardShape<T, BackwardForm{.dim = 64,
                                              .queries = 128,
                                              .swapped = false,
                                              .late = true,
                                              .lists = true,
                                              .adjusts = false,
                                              .exact = true,
                                              .turns = kTurns,
                                              .stays = true}>;

/// By the kernel for the mode of a call.
template <class Fast, class InTurn>
void launch_mode(const BackwardCall& call, std::byte* memory, cudaStream_t stream) {
  if (call.options.execution.deterministic) {
    launch_lists<InTurn>(call, memory, stream);
  } else {
    launch_lists<Fast>(call, memory, stream);
  }
}

/// In whichever mode, since the workspace must do for both.
bool suits(const AttentionInputs& inputs, const AttentionOptions& options) {
  const AttentionSequences& sequences = options.sequences;
  return (is_exact<Lists128<__half, BackwardTurns::never>>(inputs) ||
          is_exact<Lists64<__half, BackwardTurns::never>>(inputs)) &&
         options.blocks.block_rows % kPlaceRows == 0 && options.visibility.left < 0 &&
         options.visibility.right < 0 && !sequences.cu_query && !sequences.cu_key &&
         !sequences.used_query && !sequences.used_key;
}

}  // namespace

bool is_for_lists(const BackwardCall& call) {
  const AttentionGradients& gradients = call.gradients;
  const DType storage = call.inputs.q.dtype;
  return suits(call.inputs, call.options) && !gradients.accumulate &&
         gradients.dq.dtype == storage && gradients.dk.dtype == storage &&
         gradients.dv.dtype == storage;
}

int64_t backward_lists_bytes(const AttentionInputs& inputs, const AttentionOptions& options) {
  return suits(inputs, options)
             ? backward_list_workspace(inputs, options, backward_width(inputs)).end
             : 0;
}

void launch_backward_lists(const BackwardCall& call, std::byte* memory, cudaStream_t stream) {
  with_storage(call.inputs.q.dtype, [&](auto storage) {
    using T = decltype(storage);
    constexpr BackwardTurns kNever = BackwardTurns::never, kAlways = BackwardTurns::always;
    if (backward_width(call.inputs) > 64) {
      launch_mode<Lists128<T, kNever>, Lists128<T, kAlways>>(call, memory, stream);
    } else {
      launch_mode<Lists64<T, kNever>, Lists64<T, kAlways>>(call, memory, stream);
    }
  });
}

}  // namespace flashloom::sm90
