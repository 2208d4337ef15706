#pragma once

#include "flashloom/ops/attention/sm90/backward_launch.cuh"

// Which shape of the backward kernel runs. Heads of exactly 64 and 128 columns have kernels of
// their own, one for each mode.

namespace flashloom::sm90 {

template <class T>
using Backward128 = BackwardShape<T, BackwardForm{.dim = 128,
                                                  .queries = 64,
                                                  .swapped = false,
                                                  .late = false,
                                                  .lists = false,
                                                  .adjusts = false,
                                                  .exact = false,
                                                  .turns = BackwardTurns::maybe}>;
/// 80 queries read keys and values a fifth less often from shared memory than 64.
template <class T, BackwardTurns kTurns, bool kStays>
using Backward128Exact = BackwardShape<T, BackwardForm{.dim = 128,
                                                       .queries = 80,
                                                       .swapped = true,
                                                       .late = true,
                                                       .lists = false,
                                                       .adjusts = false,
                                                       .exact = true,
                                                       .turns = kTurns,
                                                       .stays = kStays}>;
/// Three panels of 32 columns leave room for 96 queries.
template <class T, BackwardTurns kTurns>
using Backward96 = BackwardShape<T, BackwardForm{.dim = 96,
                                                 .queries = 96,
                                                 .swapped = true,
                                                 .late = true,
                                                 .lists = false,
                                                 .adjusts = false,
                                                 .exact = false,
                                                 .turns = kTurns,
                                                 .stays = true}>;
template <class T, bool kExact, BackwardTurns kTurns>
using Backward64 = BackwardShape<T, BackwardForm{.dim = 64,
                                                 .queries = 128,
                                                 .swapped = false,
                                                 .late = kExact,
                                                 .lists = false,
                                                 .adjusts = false,
                                                 .exact = kExact,
                                                 .turns = kTurns,
                                                 .stays = kExact}>;
template <class T>
using BackwardGeneral128 = BackwardShape<T, BackwardForm{.dim = 128,
                                                         .queries = 64,
                                                         .swapped = false,
                                                         .late = false,
                                                         .lists = true,
                                                         .adjusts = true,
                                                         .exact = false,
                                                         .turns = BackwardTurns::maybe}>;
template <class T>
using BackwardGeneral64 = BackwardShape<T, BackwardForm{.dim = 64,
                                                        .queries = 64,
                                                        .swapped = true,
                                                        .late = false,
                                                        .lists = true,
                                                        .adjusts = true,
                                                        .exact = false,
                                                        .turns = BackwardTurns::maybe}>;

/// For block masks and nothing else, where the kernel for nothing but lists does not do.
template <class T>
using BackwardMasked128 = BackwardShape<T, BackwardForm{.dim = 128,
                                                        .queries = 64,
                                                        .swapped = false,
                                                        .late = false,
                                                        .lists = true,
                                                        .adjusts = false,
                                                        .exact = false,
                                                        .turns = BackwardTurns::maybe}>;
template <class T>
using BackwardMasked64 = BackwardShape<T, BackwardForm{.dim = 64,
                                                       .queries = 128,
                                                       .swapped = false,
                                                       .late = false,
                                                       .lists = true,
                                                       .adjusts = false,
                                                       .exact = false,
                                                       .turns = BackwardTurns::maybe}>;

/// Whether scores need more than scale and what hides pairs.
inline bool is_adjusted(const AttentionSaved& saved, const AttentionOptions& options) {
  return saved.dentropy || options.score.softcap != 0 || options.score.alibi_slopes ||
         options.dropout.probability != 0 || options.positions.exclude_self ||
         options.score.scale < 0;  // hidden scores are -inf before they are scaled
}

/// The larger of the two row widths decides the kernel.
inline int64_t backward_width(const AttentionInputs& inputs) {
  return std::max(inputs.q.dim(-1), inputs.v.dim(-1));
}

template <class Shape>
int64_t workspace_of(const AttentionInputs& inputs, const AttentionSaved& saved,
                     const AttentionOptions& options) {
  return backward_workspace<Shape>(inputs, saved, options).end;
}

/// Calls launch(T()) with the storage type.
template <class Launch>
void with_storage(DType storage, Launch&& launch) {
  if (storage == DType::bf16) {
    launch(__nv_bfloat16());
  } else {
    launch(__half());
  }
}

template <class Shape>
bool is_exact(const AttentionInputs& inputs) {
  return inputs.q.dim(-1) == Shape::kDim && inputs.v.dim(-1) == Shape::kDim;
}

/// Tiles of queries that a block walks for a head, on average.
inline int64_t steps_of_block(const AttentionInputs& inputs, const AttentionOptions& options,
                              int64_t tile) {
  const int64_t documents = options.sequences.cu_query ? options.sequences.cu_query.dim(0) - 1 : 1;
  const int64_t rows = inputs.q.dim(-2) / std::max<int64_t>(documents, 1);
  return rows / tile / (options.visibility.right >= 0 ? 2 : 1);
}

/// The kernel for the mode of a call: one for any width below, or one of two for this width.
template <class Any, class Fast, class InTurn>
void launch_backward_mode(const BackwardCall& call, std::byte* memory, cudaStream_t stream) {
  if (!is_exact<Fast>(call.inputs)) {
    launch_backward<Any>(call, memory, stream);
  } else if (call.options.execution.deterministic) {
    launch_backward<InTurn>(call, memory, stream);
  } else {
    launch_backward<Fast>(call, memory, stream);
  }
}

// Each in a file of its own, since they take long to compile.
void launch_backward_64(const BackwardCall& call, std::byte* memory, cudaStream_t stream);
void launch_backward_96(const BackwardCall& call, std::byte* memory, cudaStream_t stream);
void launch_backward_128(const BackwardCall& call, std::byte* memory, cudaStream_t stream);
void launch_backward_general(const BackwardCall& call, std::byte* memory, cudaStream_t stream);
void launch_backward_masked(const BackwardCall& call, std::byte* memory, cudaStream_t stream);
/// Whether the kernel for nothing but lists takes a call with a block mask.
bool is_for_lists(const BackwardCall& call);
void launch_backward_lists(const BackwardCall& call, std::byte* memory, cudaStream_t stream);
/// Its workspace; 0 where it takes no such call.
int64_t backward_lists_bytes(const AttentionInputs& inputs, const AttentionOptions& options);
/// Whether the kernel for narrow bands takes a call; it needs no workspace.
bool is_band(const BackwardCall& call);
void launch_backward_band(const BackwardCall& call, cudaStream_t stream);
void launch_backward_near(const BackwardCall& call, std::byte* memory, cudaStream_t stream);
void launch_backward_wide_general(const BackwardCall& call, std::byte* memory, cudaStream_t stream);
void launch_backward_wide(const BackwardCall& call, std::byte* memory, cudaStream_t stream);

}  // namespace flashloom::sm90
