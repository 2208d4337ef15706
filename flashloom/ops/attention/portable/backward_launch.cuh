#pragma once

#include "flashloom/ops/attention/portable/backward_kernel.cuh"
#include "flashloom/ops/attention/portable/launch.cuh"

namespace flashloom::portable {

/// dQ, then dK and dV, from the numbers in `params`; `params.problem` is of any tile.
/// Instantiated once an element type, in a file of its own each.
template <class T>
void launch_backward(const BackwardParams& params, const AttentionOptions& options, Stream stream);

template <class Shape>
void launch_backward_shape(BackwardParams params, const AttentionOptions& options, Stream stream) {
  const GeometrySource& source = params.problem.source;
  const AttentionBlocks& blocks = options.blocks;
  const auto grid = [&](int64_t rows, int32_t side, int64_t heads, unsigned y) {
    params.tiles = static_cast<int32_t>(tile_count(rows, side));
    return dim3(static_cast<unsigned>(params.tiles * heads * source.sequences), y);
  };
  TileShape& tile = params.problem.tile;
  tile = {side_of_tile(blocks.block_rows, Shape::kOuter),
          side_of_tile(blocks.block_keys, Shape::kInner)};
  const dim3 query_blocks = grid(source.max_query, tile.rows, source.heads, 1);
  launch(&attention_backward_kernel<Shape, Side::queries>, query_blocks, Shape::kThreads,
         Shape::kSharedBytes, params, stream, "attention_backward_kernel, dQ");
  tile = {side_of_tile(blocks.block_rows, Shape::kInner),
          side_of_tile(blocks.block_keys, Shape::kOuter)};
  const dim3 key_blocks = grid(source.max_key, tile.keys, source.key_heads, Shape::kSplit ? 2 : 1);
  launch(&attention_backward_kernel<Shape, Side::keys>, key_blocks, Shape::kThreads,
         Shape::kSharedBytes, params, stream, "attention_backward_kernel, dK and dV");
}

/// Tiles of 64 rows, fewer where rows are wide: shared memory stays below 99 KB (as forward).
template <class T>
void launch_backward_any(const BackwardParams& params, const AttentionOptions& options,
                         Stream stream) {
  constexpr bool kWide = sizeof(T) == 4;
  const int32_t dim = std::max(params.problem.head_dim, params.problem.value_dim);
  if (dim <= 64) {
    launch_backward_shape<BackwardShape<T, 64, 4, kWide ? 32 : 64>>(params, options, stream);
  } else if (dim <= 128) {
    launch_backward_shape<BackwardShape<T, 128, 4, kWide ? 32 : 64>>(params, options, stream);
  } else {
    launch_backward_shape<BackwardShape<T, 256, kWide ? 2 : 4, kWide ? 16 : 32>>(params, options,
                                                                                 stream);
  }
}

}  // namespace flashloom::portable
