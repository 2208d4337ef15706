#pragma once

#include <span>

#include "flashloom/ops/attention/cpu/cpu_score.h"

namespace flashloom {

/// Decoding: so few queries share keys that the time is that of reading the keys once. A task is
/// (sequence, key-value head, split of the keys); it reads rows of K and V where they lie and
/// serves all rows (query heads of the group x queries) from each. The splits are merged in order.
/// Their bits depend neither on threads and pages nor on how many rows share a key.

/// Most rows that share a key; beyond it the tiled kernel reuses keys better.
inline constexpr int64_t kDecodeRows = 16;
/// Keys a split: long enough that its partial result costs little, short enough to feed all cores.
inline constexpr int64_t kDecodeSplitKeys = 512;
/// Most keys whose scores are worked on together, and what their number is a multiple of: the lanes
/// of the widest vector.
inline constexpr int64_t kDecodeBlock = 64;
inline constexpr int64_t kDecodeStep = 16;
/// Bytes of K, and of V, that are read in a phase while as many of the other are fetched into the
/// second-level cache. Half as many cost four rows of 128 some 5 % (the softmax between the
/// phases).
inline constexpr int64_t kDecodePhaseBytes = 16 << 10;

struct DecodePlan {
  const AttentionOutputs* outputs;
  const AttentionInputs* inputs;
  const AttentionOptions* options;
  GeometrySource source;
  CpuScore score;
  int64_t head_dim, value_dim;
  int64_t head_padded, value_padded;
  int64_t group;  // query heads a key-value head
  int64_t rows;   // group x queries
  int64_t split_keys;
  int64_t block;  // keys worked on together
  int64_t splits;
  int64_t partial_floats;  // of one split: (rows, E), largest (rows), sum (rows)
  float* partial;          // (B, G, splits, ...)
  float* scratch;          // (workers, ...)
  int64_t scratch_floats;
  int64_t floats;  // of the workspace

  float* partial_of(int64_t sequence, int64_t key_head, int64_t split) const {
    return partial + ((sequence * source.key_heads + key_head) * splits + split) * partial_floats;
  }
};

/// The plan with its pieces of the workspace; with null memory only their size.
DecodePlan decode_plan(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                       const AttentionOptions& options, float* memory);

bool decode_applies(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                    const AttentionOptions& options);
int64_t attention_decode_cpu_bytes(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                                   const AttentionOptions& options);
void attention_decode_cpu(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                          std::span<std::byte> workspace, const AttentionOptions& options);

}  // namespace flashloom
