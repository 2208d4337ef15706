#include "flashloom/ops/attention/sm90/attention_sm90.h"
#include "flashloom/ops/attention/sm90/backward_variants.cuh"

namespace flashloom::sm90 {
namespace {

// Keys that a row may see, up to which dQ is computed by blocks of its own and not added up in
// memory. The scores are computed twice then, but no tile of 128 keys is mostly empty.
constexpr int64_t kNearKeys = 512;
// With as many tiles of 128 keys as this, four a multiprocessor of an H100, blocks that stay are
// busy all along, where there are any; they are the faster ones from fewer keys on. With fewer the
// small blocks of the near kernel spread better (near2).
constexpr int64_t kManyTiles = 528;
// Packed sequences, of which some are longer than kNearKeys, but the typical one is not.
constexpr int64_t kNearKeysOfMixed = 256;
constexpr int64_t kMostBlocks = 65535;  // in two of the grid's dimensions

// Keys up to which the near kernel is the faster one beside blocks that stay. Measured, near over
// the other (near2, 16k tokens): without a mask D 64 1.11 at 320 and 0.88 at 384, D 96 1.03 at 192
// and 0.97 at 320, D 128 1.05 and 0.95; causal D 64 1.11 at 448 and 0.95 at 512, D 96 1.11 at 320
// and 0.94 at 384, D 128 1.08 at 512; windows of 385 keys 1.10, 0.93 and 1.11, of 511 0.90, 0.80
// and 0.99.
int64_t most_near_keys(const AttentionInputs& inputs, bool masked) {
  const int64_t width = backward_width(inputs);
  const bool exact = inputs.q.dim(-1) == inputs.v.dim(-1);
  if (width > 64 && width <= 96) {
    return masked ? 352 : 256;
  }
  if (width == 64 && exact) {
    return masked ? 448 : 320;
  }
  if (width == 128 && exact) {
    return masked ? kNearKeys : 320;
  }
  return kNearKeys;
}

bool is_near(const AttentionInputs& inputs, const AttentionOptions& options) {
  const Problem problem = make_problem(as_batched(inputs.q), as_batched(inputs.k), options);
  const auto& [left, right] = options.visibility;
  const bool many = backward_heads(problem) * backward_key_tiles(problem, 128) >= kManyTiles;
  const bool masked = left >= 0 || right >= 0;
  int64_t most = many ? most_near_keys(inputs, masked) : kNearKeys;
  auto keys = static_cast<int64_t>(problem.key_length);
  if (many && problem.cu_key != nullptr) {
    // Without a mask long ones cost the more.
    const int64_t mixed = masked ? kNearKeysOfMixed : 0;
    most = keys > kNearKeys ? std::min(most, mixed) : most;
    keys = static_cast<int64_t>(sequence_keys(problem));
  }
  const bool narrow = left >= 0 && right >= 0 &&
                      left + right + 1 <= (many ? most_near_keys(inputs, true) : kNearKeys);
  const int64_t rows = std::max(inputs.q.dim(-2), inputs.k.dim(-2));
  const int64_t heads = inputs.q.dim(-3) * (inputs.q.rank == 4 ? inputs.q.dim(0) : 1);
  const int64_t documents = options.sequences.cu_query ? problem.batch : 0;
  return (keys <= most || narrow) && rows / 64 + documents < kMostBlocks && heads <= kMostBlocks;
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
            std::max({workspace_of<Backward128<__half>>(inputs, saved, options),
                      workspace_of<Backward128Exact<__half, BackwardTurns::never, false>>(
                          inputs, saved, options),
                      workspace_of<Backward128Exact<__half, BackwardTurns::never, true>>(
                          inputs, saved, options)})};
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
