#pragma once

#include "flashloom/ops/attention/cpu/cpu_score.h"

namespace flashloom {

/// Keys and queries of a tile. The tile's keys, values, their gradients and the queries' rows stay
/// in the second-level cache together (0.2 MB at D = 64).
inline constexpr int64_t kBackwardKeys = 96;
inline constexpr int64_t kBackwardQueries = 96;
/// Tasks to aim for: enough for many cores, few enough that partial sums of dq stay small.
inline constexpr int64_t kBackwardTasks = 32;
inline constexpr int64_t kMaxKeyChunks = 8;
/// Rows between sequences in the partial sums, so that a register tile may overhang.
inline constexpr int64_t kRowPadding = 24;

/// One backward call. A task is (sequence, key-value head, chunk of key tiles): it walks the
/// queries of all heads of the group, keeps dk and dv of a tile to itself and adds to its own
/// partial sum of dq; the partial sums are added in the order of chunks.
struct BackwardPlan {
  const AttentionGradients* gradients;
  const AttentionInputs* inputs;
  const AttentionSaved* saved;
  const AttentionOptions* options;
  GeometrySource source;
  int64_t head_dim, value_dim;
  int64_t head_padded, value_padded;
  bool score_pairs, value_pairs;        // q and k, dout and v stay pairs of bf16 in their products
  int64_t score_depth, score_padded;    // elements of a row there: D, or D / 2 pairs
  int64_t dvalue_depth, dvalue_padded;  // E, or E / 2 pairs
  // Products with P and dS that end in gradients of bf16 round P and dS to bf16 too.
  bool dkey_pairs, dvalue_pairs;
  int64_t panel_width;
  TileShape tile;
  int64_t panels;      // of a tile of keys
  int64_t key_tiles;   // of the longest sequence
  int64_t chunks;      // of key tiles, strided: chunk c takes tiles c, c + chunks, ...
  int64_t total_rows;  // of all sequences, with padding
  CpuScore score;
  bool with_entropy;
  // In the workspace:
  float* log_sums;   // (H, rows): lse, +inf for rows that see nothing
  float* deltas;     // (H, rows): sum of dout o out, less dlse
  float* entropies;  // (H, rows), as dentropies only with dentropy
  float* dentropies;
  float* partial;  // (chunks, H, rows, D): sums of dq
  float* scratch;  // (workers, ...)
  int64_t scratch_floats;
  int64_t floats;  // of the workspace

  /// First row of a sequence in log_sums, deltas and partial.
  int64_t first_row(int32_t sequence, const SequenceRows& rows) const {
    const int64_t before = source.cu_query != nullptr ? int64_t{rows.query_first}
                                                      : int64_t{sequence} * source.max_query;
    return before + sequence * kRowPadding;
  }
};

/// What the chosen instructions want.
struct BackwardTarget {
  int64_t panel_width;
  bool pairs;  // bf16_pairs_available()
};

/// The plan with its pieces of the workspace; with null memory only their size.
BackwardPlan backward_plan(const AttentionGradients& gradients, const AttentionInputs& inputs,
                           const AttentionSaved& saved, const AttentionOptions& options,
                           const BackwardTarget& target, float* memory);

/// A worker's scratch memory.
struct BackwardScratch {
  float* keys;           // (panels, D, W), scaled for scores in base 2; or pairs
  float* values;         // (panels, E, W), or pairs
  float* grouped_keys;   // (D / 16, tile keys, 16)
  float* dkeys;          // (panels, D, W)
  float* dvalues;        // (panels, E, W)
  float* queries;        // (D / 16, tile rows, 16)
  float* douts;          // (E / 16, tile rows, 16)
  float* query_pairs;    // (pairs / 16, tile rows, 16)
  float* dout_pairs;     // (pairs / 16, tile rows, 16)
  float* query_rows;     // (D / 16, tile rows / 2, 16) of pairs of rows
  float* dout_rows;      // (E / 16, tile rows / 2, 16) of pairs of rows
  float* packed;         // (tile rows / 2, W) of pairs of rows
  float* probabilities;  // (tile rows, W)
  float* dscores;        // (tile rows, panels x W)
  float* slopes;         // (tile rows, W): of softcap
  float* dropped;        // (tile rows, W): probabilities after dropout
  float* centred;        // (tile rows, W): scores less lse, for the entropy
  float* entropies;      // (tile rows)
  float* dentropies;     // (tile rows)
  float* log_sums;       // (tile rows)
  float* deltas;         // (tile rows)
  float* rows;           // (W, D or E)
  int64_t floats;        // of all

  BackwardScratch(const BackwardPlan& plan, float* memory);
};

}  // namespace flashloom
