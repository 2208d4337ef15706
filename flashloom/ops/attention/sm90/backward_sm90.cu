#include "flashloom/ops/attention/sm90/attention_sm90.h"
#include "flashloom/ops/attention/sm90/backward_variants.cuh"

namespace flashloom::sm90 {
namespace {

// Keys that a row may see, up to which dQ is not added up in memory: sequences of 512 run 1.01 to
// 1.3 times as fast so, of 256 1.2 to 1.5 times; of 1024 at 0.86 (full) of the rate.
constexpr int64_t kNearKeys = 512;
// The same of 64 columns without a mask: 280 TFLOP/s so and 320 in the other way at 512, 225 and
// 215 at 256; under a causal mask 202 and 199, 132 and 115.
constexpr int64_t kNearKeysOf64 = 256;
constexpr int64_t kMostBlocks = 65535;  // in two of the grid's dimensions

bool is_near(const AttentionInputs& inputs, const AttentionOptions& options) {
  const auto& [left, right] = options.visibility;
  const AttentionSequences& sequences = options.sequences;
  const int64_t keys = sequences.cu_key ? sequences.max_key : inputs.k.dim(-2);
  const int64_t rows = std::max(inputs.q.dim(-2), inputs.k.dim(-2));
  const int64_t heads = inputs.q.dim(-3) * (inputs.q.rank == 4 ? inputs.q.dim(0) : 1);
  const int64_t documents = sequences.cu_query ? sequences.cu_query.dim(0) : 0;
  const bool unmasked = left < 0 && right < 0 && !sequences.cu_key;
  const bool is_64 = inputs.q.dim(-1) == 64 && inputs.v.dim(-1) == 64;
  return (keys <= (unmasked && is_64 ? kNearKeysOf64 : kNearKeys) ||
          (left >= 0 && right >= 0 && left + right + 1 <= kNearKeys)) &&
         rows / 64 + documents < kMostBlocks && heads <= kMostBlocks;
}

// Which kernels a call takes, and the bytes of its workspace.
struct Choice {
  void (*launch)(const BackwardCall& call, std::byte* memory, cudaStream_t stream);
  int64_t bytes;
};

Choice choose(const AttentionInputs& inputs, const AttentionSaved& saved,
              const AttentionOptions& options) {
  const int64_t width = backward_width(inputs);
  const int64_t rows = backward_workspace(inputs, saved, options, kQueryPlace, 0).end;
  if (width > 128) {
    return {is_adjusted(saved, options) ? launch_backward_wide_general : launch_backward_wide,
            rows};
  }
  const bool masked = static_cast<bool>(options.blocks.row_offsets);
  // At 64 columns a tile of the kernel for masks is 128 queries, that of the general one 64.
  const bool whole_tiles =
      width > 64 || options.blocks.block_rows % BackwardMasked64<__half>::kQueries == 0;
  if (is_adjusted(saved, options) || (masked && !whole_tiles)) {
    return {launch_backward_general,
            width > 64 ? workspace_of<BackwardGeneral128<__half>>(inputs, saved, options)
                       : workspace_of<BackwardGeneral64<__half>>(inputs, saved, options)};
  }
  if (masked) {
    return {launch_backward_masked,
            std::max(backward_lists_bytes(inputs, options),
                     width > 64 ? workspace_of<BackwardMasked128<__half>>(inputs, saved, options)
                                : workspace_of<BackwardMasked64<__half>>(inputs, saved, options))};
  }
  if (is_near(inputs, options)) {
    return {launch_backward_near, rows};
  }
  if (width > 96) {
    return {launch_backward_128,
            std::max(workspace_of<Backward128<__half>>(inputs, saved, options),
                     workspace_of<Backward128Exact<__half, BackwardTurns::never, true>>(
                         inputs, saved, options))};
  }
  if (width > 64) {
    return {launch_backward_96,
            workspace_of<Backward96<__half, BackwardTurns::never>>(inputs, saved, options)};
  }
  return {launch_backward_64,
          workspace_of<Backward64<__half, true, BackwardTurns::never>>(inputs, saved, options)};
}

}  // namespace

int64_t attention_backward_bytes(const AttentionInputs& inputs, const AttentionSaved& saved,
                                 const AttentionOptions& options) {
  return choose(inputs, saved, options).bytes;
}

void attention_backward(const AttentionGradients& gradients, const AttentionInputs& inputs,
                        const AttentionSaved& saved, std::span<std::byte> workspace,
                        const AttentionOptions& options, Stream stream) {
  choose(inputs, saved, options)
      .launch({gradients, inputs, saved, options}, workspace.data(),
              static_cast<cudaStream_t>(stream.handle));
}

}  // namespace flashloom::sm90
