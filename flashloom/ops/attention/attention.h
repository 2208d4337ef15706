#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "flashloom/core/device.h"
#include "flashloom/core/tensor_view.h"

namespace flashloom {

// The attention contract: everything that any backend may be asked. A backend that does not cover a
// field refuses it by name (attention_backend() says which backend would run, and why); none
// ignores one. Absent views and default values mean "not used".
//
// Letters: B sequences, H query heads, G key-value heads (H % G == 0, query head h reads key-value
// head h / (H / G)), S_q queries, S_k keys of a sequence, D head dimension, E value dimension,
// T tokens of a packed batch.
//
// Shapes: batched  q (B, H, S_q, D), k (B, G, S_k, D), v (B, G, S_k, E), out (B, H, S_q, E),
//                  rows of scalars (lse, entropy) (B, H, S_q);
//         packed   q (H, T_q, D), k (G, T_k, D), v (G, T_k, E), out (H, T_q, E), lse (H, T_q), with
//                  cu_query and cu_key of B + 1 entries: sequence b owns rows
//                  [cu_query[b], cu_query[b + 1]) of q;
//         paged    q as batched, k and v (pages, G, page_size, D or E) with a page table.
// Any strides, the last 1. Storage f32, bf16, f16, each tensor its own; arithmetic f32 or better.

/// Lengths and places of sequences. Index tensors lie on the device of q, the bounds on the host,
/// so that nothing has to be read back before a launch.
struct AttentionSequences {
  ConstTensorView cu_query = {};  // (B + 1) i32: first row of each packed sequence, then T_q
  ConstTensorView cu_key = {};    // (B + 1) i32
  ConstTensorView used_query =
      {};  // (B) i32: rows behind it are padding, never read; out 0, lse -inf
  ConstTensorView used_key = {};  // (B) i32: keys behind it are padding, never read
  ConstTensorView page_table =
      {};                 // (B, pages a sequence) i32: page of k and v for each block of keys
  int64_t max_query = 0;  // upper bound of a packed sequence's queries; required with cu_query
  int64_t max_key = 0;    // likewise for keys, and for paged sequences
  int64_t page_size = 0;  // keys a page
};

/// Query i sees key j iff -left <= r_j - p_i <= right, where p_i and r_j are their positions
/// (AttentionPositions); -1 is unbounded. Causal is right = 0.
struct AttentionVisibility {
  int64_t left = -1;
  int64_t right = -1;
};

/// Positions decide visibility, ALiBi and dropout. Without explicit ones p_i = offset + i (or
/// query_start + i) and r_j = j (or key_start + j).
struct AttentionPositions {
  /// Default: S_k - S_q of each sequence (used lengths where given), so that the last query stands
  /// beside the last key ("bottom right"); PyTorch's is_causal is offset 0. Not with starts.
  std::optional<int64_t> offset = {};
  std::optional<int64_t> query_start =
      {};                                 // position of row 0 of q, for a part of a longer sequence
  std::optional<int64_t> key_start = {};  // likewise for k; both or neither
  /// Explicit positions, for rows that were dropped, gathered or sorted. Ascending within a bucket
  /// (within a row of heads without buckets), so that kernels can search them. 2^31 - 1 marks a
  /// padding row, which sees nothing and is seen by none, so that buckets can be padded to tiles.
  /// With packed tensors (H, T) instead of (B, H, S), here and in output_index.
  ConstTensorView query = {};        // (B, H, S_q) i32
  ConstTensorView key = {};          // (B, G, S_k) i32
  ConstTensorView query_count = {};  // (B, H) i32: rows of q that exist; the rest is padding
  ConstTensorView key_count = {};    // (B, G) i32
  /// Row of out, lse and entropy (counted within the sequence; dout, dlse, dentropy likewise) that
  /// takes this query; -1 for padding. Rows of out that no query names become 0, lse -inf.
  ConstTensorView output_index = {};  // (B, H, S_q) i32
  /// Buckets (hash attention): a pair is visible only within a bucket. Rows are sorted by bucket;
  /// bucket n owns rows [offsets[n], offsets[n + 1]).
  ConstTensorView query_bucket_offsets = {};  // (B, H, buckets + 1) i32
  ConstTensorView key_bucket_offsets = {};    // (B, G, buckets + 1) i32
  /// A query does not see the key at its own position (Reformer's rule for shared q and k).
  bool exclude_self = false;
};

/// A block mask in compressed rows, shared by heads or sequences through sizes of 1. It restricts
/// what visibility leaves. Not with buckets.
struct AttentionBlocks {
  int64_t block_rows = 0;            // queries a block
  int64_t block_keys = 0;            // keys a block
  ConstTensorView row_offsets = {};  // (B or 1, H or 1, block rows of S_q + 1) i32
  ConstTensorView columns = {};      // (B or 1, H or 1, entries) i32, ascending within a row
  /// Absent: every block is full. Else -1 is a full block, n a partial one: of its pairs only those
  /// whose bit is set in bits[n] are kept.
  ConstTensorView partial = {};  // (B or 1, H or 1, entries) i32
  ConstTensorView bits = {};  // (partial blocks, block_rows, block_keys / 8) u8, lowest bit first
  /// The transposed lists, for the backward pass: blocks of queries for each block of keys.
  ConstTensorView column_offsets = {};      // (B or 1, H or 1, block columns of S_k + 1) i32
  ConstTensorView rows = {};                // (B or 1, H or 1, entries) i32
  ConstTensorView transposed_partial = {};  // (B or 1, H or 1, entries) i32, into the same bits
};

/// Skips the softmax and value product of a tile whose scores are all small. Tiles are those of the
/// grid of `rows` x `keys`; only whole tiles of which every pair is visible can be skipped.
/// A skipped tile adds nothing to the denominator either: the result is exact attention over the
/// tiles that were kept. Forward only.
struct AttentionGate {
  /// absolute: skip if every score of the tile is below the threshold (BSFA); relative: skip if in
  /// every row the tile's maximum lies more than the threshold below the row's running maximum
  /// (skip-softmax; depends on the order of keys, which is the backend's).
  enum class Kind : uint8_t { none, absolute, relative };

  Kind kind = Kind::none;
  ConstTensorView threshold = {};  // (H, n) f32, by block of `rows` queries; the last one repeats
  int64_t rows = 128;              // scope of a decision
  int64_t keys = 64;
  TensorView kept = {};  // out, optional: (B, H, row blocks, key blocks / 32 rounded up) i32 bitmap
  TensorView dropped_mass =
      {};  // out, optional: (B, H, S_q) f32, upper bound of the lost share of a row
};

/// scale -> softcap -> ALiBi or bias -> mask -> softmax with sink.
struct AttentionScore {
  float scale = 0;                    // 0 means 1 / sqrt(D)
  float softcap = 0;                  // c: s becomes c tanh(s / c); 0 is off
  ConstTensorView alibi_slopes = {};  // (H) or (B, H) f32: adds -slope |r_j - p_i|
  ConstTensorView bias = {};          // (B or 1, H or 1, S_q or 1, S_k) any float type, added
  ConstTensorView sinks = {};         // (H) f32: logit of an extra key of value 0
};

/// A pair (i, j) is dropped by bits drawn from (seed, offset; sequence, head, p_i, r_j), so that
/// the mask does not depend on tiles, packing or order. See attention_dropout.h for the exact
/// counter.
struct AttentionDropout {
  float probability = 0;
  ConstTensorView seed = {};    // (1) u64
  ConstTensorView offset = {};  // (1) u64, optional
};

/// Scales of 8-bit storage (on a GPU slow float64 loops take it): stored value x scale = value.
struct AttentionFp8 {
  ConstTensorView q_scale = {}, k_scale = {}, v_scale = {},
                  out_scale = {};  // (B or 1, heads or 1) f32
  TensorView amax_out = {};        // (1) f32: largest |out| before scaling
};

enum class AttentionBackend : uint8_t { automatic, reference, cpu, portable, sm90 };

std::string_view attention_backend_name(AttentionBackend backend);

struct AttentionExecution {
  bool deterministic = true;  // same bits every time; on the CPU also for any number of threads
  int splits = 0;             // parts of the keys worked on side by side; 0: the backend's choice
  float multiprocessor_share = 1;                          // of the GPU
  AttentionBackend backend = AttentionBackend::automatic;  // anything else is required
  TensorView status =
      {};  // (1) i32 on the device: set non-zero by bad index data, see attention_check()
};

struct AttentionOptions {
  AttentionSequences sequences = {};
  AttentionVisibility visibility = {};
  AttentionPositions positions = {};
  AttentionBlocks blocks = {};
  AttentionGate gate = {};
  AttentionScore score = {};
  AttentionDropout dropout = {};
  AttentionFp8 fp8 = {};
  AttentionExecution execution = {};
};

struct AttentionInputs {
  ConstTensorView q = {};  // (B, H, S_q, D)
  ConstTensorView k = {};  // (B, G, S_k, D)
  ConstTensorView v = {};  // (B, G, S_k, E)
};

struct AttentionOutputs {
  TensorView out = {};  // (B, H, S_q, E); f32 for parts that attention_merge() will join
  TensorView lse = {};  // optional (B, H, S_q) f32: natural log of the sum of exp(scores) and sink
  TensorView entropy = {};  // optional (B, H, S_q) f32, in nats, over keys and sink
  float entropy_order = 1;  // 1: Shannon; otherwise Renyi of that order
};

/// What the backward pass needs beside the inputs.
struct AttentionSaved {
  ConstTensorView out = {};       // as the forward pass wrote it
  ConstTensorView lse = {};       // (B, H, S_q) f32
  ConstTensorView entropy = {};   // (B, H, S_q) f32, with dentropy
  ConstTensorView dout = {};      // (B, H, S_q, E)
  ConstTensorView dlse = {};      // optional (B, H, S_q) f32
  ConstTensorView dentropy = {};  // optional (B, H, S_q) f32
  float entropy_order = 1;
};

struct AttentionGradients {
  TensorView dq = {};      // like q, any float type
  TensorView dk = {};      // like k
  TensorView dv = {};      // like v
  TensorView dsinks = {};  // optional (H) f32
  TensorView dbias =
      {};  // optional, like bias, f32: summed over the dimensions that bias broadcasts
  bool accumulate = false;  // add to what is there (f32 gradients only)
};

/// Exact attention: out = softmax(score(q k^T)) v.
///
/// A row that sees no key gives out = 0 and lse = -inf (lse = sink with a sink).
/// IO:      k and v are read once for each tile of queries; the scores never reach memory.
/// Units:   lse and entropy in nats.
/// Stream:  asynchronous on `stream` (the CPU returns when done); allocates nothing.
/// Memory:  `workspace` of attention_forward_workspace_bytes(), 64-byte aligned, any content.
/// Throws:  InvalidArgument (shape, dtype, stride, contradictory options) before anything runs;
///          Unsupported if the required backend does not cover the call.
/// Source:  Dao et al. 2022 (algorithm 1); Rabe & Staats 2021; Shah et al. 2024 for the sm90 path.
void attention_forward(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                       std::span<std::byte> workspace, const AttentionOptions& options = {},
                       Stream stream = {});

/// Gradients of attention_forward() for the same inputs and options.
///
/// dS = P o (dP - dentropy s - D'), D' = sum(dout o out) - dlse - dentropy sum(P s), with s the
/// final scores and P their softmax (Shannon entropy); then back through bias, softcap and scale.
void attention_backward(const AttentionGradients& gradients, const AttentionInputs& inputs,
                        const AttentionSaved& saved, std::span<std::byte> workspace,
                        const AttentionOptions& options = {}, Stream stream = {});

/// Bytes of workspace. They follow from shapes, dtypes and host bounds alone: the views' data may
/// be null.
int64_t attention_forward_workspace_bytes(const AttentionOutputs& outputs,
                                          const AttentionInputs& inputs,
                                          const AttentionOptions& options = {});
int64_t attention_backward_workspace_bytes(const AttentionGradients& gradients,
                                           const AttentionInputs& inputs,
                                           const AttentionSaved& saved,
                                           const AttentionOptions& options = {});

/// Joins parts of one attention over disjoint sets of keys:
/// out = sum_p exp(lse_p - lse) parts_p, lse = log(sum_p exp(lse_p) + exp(sink)).
/// Shapes:  parts (P, B, H, S, E) f32, part_lse (P, B, H, S) f32, out (B, H, S, E), lse optional
///          (B, H, S); packed without B; sinks optional (H) f32. Parts carry no sink.
void attention_merge(TensorView out, TensorView lse, ConstTensorView parts,
                     ConstTensorView part_lse, ConstTensorView sinks = {}, Stream stream = {});

/// Which backend a call will take, and why not a faster one ("" if it is the fastest).
struct AttentionChoice {
  AttentionBackend backend;
  std::string reason;
};

AttentionChoice attention_forward_backend(const AttentionOutputs& outputs,
                                          const AttentionInputs& inputs,
                                          const AttentionOptions& options = {});
AttentionChoice attention_backward_backend(const AttentionGradients& gradients,
                                           const AttentionInputs& inputs,
                                           const AttentionSaved& saved,
                                           const AttentionOptions& options = {});

/// Waits for the stream and throws InvalidArgument if a kernel met bad index data (lengths, pages,
/// blocks out of range). Kernels clamp such data, so memory stays safe without this call.
void attention_check(const AttentionOptions& options, Stream stream = {});

}  // namespace flashloom
