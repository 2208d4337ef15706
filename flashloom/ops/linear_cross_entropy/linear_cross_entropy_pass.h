#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "flashloom/core/tensor_view.h"
#include "flashloom/ops/linear_cross_entropy/linear_cross_entropy.h"
#include "flashloom/ops/linear_cross_entropy/linear_cross_entropy_plan.h"

namespace flashloom {

/// One call of the op on the CPU: its tensors, and where things of the chunk at hand lie in the
/// workspace.
struct LinearCrossEntropyPass {
  LinearCrossEntropyPlan plan;
  LinearCrossEntropyOptions options;
  TensorView dhidden;
  TensorView dweight;
  ConstTensorView weight;
  const int32_t* labels;
  int64_t channels;
  int64_t vocabulary;
  std::byte* memory;  // aligned
  int64_t first = 0;  // of the chunk, among the rows that bear loss
  int64_t rows = 0;

  template <class T>
  T* at(int64_t offset) const {
    return reinterpret_cast<T*>(memory + offset);
  }

  int32_t* places() const { return at<int32_t>(plan.places); }

  int64_t token(int64_t row) const { return places()[first + row]; }

  TensorView x() const { return {at<float>(plan.x), {rows, channels}}; }

  LogitSums& sums(int64_t slice, int64_t row) const {
    return at<LogitSums>(plan.slice_sums)[slice * plan.rows + row];
  }

  LogitRow& state(int64_t row) const { return at<LogitRow>(plan.row_state)[row]; }

  TensorView partial(int64_t slice) const {
    return {at<float>(plan.partial) + slice * plan.rows * channels, {rows, channels}};
  }

  float* dhidden_row(int64_t row) const {
    return dhidden.as<float>() + token(row) * dhidden.stride(0);
  }

  int64_t first_tile(int64_t slice) const { return slice * plan.slice_tiles; }

  int64_t end_tile(int64_t slice) const {
    return std::min(plan.tiles, (slice + 1) * plan.slice_tiles);
  }

  int64_t tile_columns(int64_t tile) const {
    return std::min(kLogitTile, vocabulary - tile * kLogitTile);
  }

  // The logits of a tile: all tiles of a chunk are kept, else one a slice.
  TensorView logits(int64_t tile) const {
    const int64_t block = keeps_chunk(plan.storage) ? tile : tile / plan.slice_tiles;
    const TensorView view(at<float>(plan.logits) + block * plan.rows * kLogitTile,
                          {rows, kLogitTile});
    return view.slice(1, 0, tile_columns(tile));
  }

  ConstTensorView weight_tile(int64_t tile) const {
    return weight.slice(0, tile * kLogitTile, tile_columns(tile));
  }

  // Where the label of `row` lies in `tile`, or -1.
  int64_t label_column(int64_t row, int64_t tile) const {
    const int64_t label = labels[token(row)];
    return label / kLogitTile == tile ? label % kLogitTile : -1;
  }

  // What label smoothing takes from the gradient of every logit.
  float smoothing_gradient() const {
    return options.gradient_scale * options.label_smoothing / static_cast<float>(vocabulary);
  }
};

}  // namespace flashloom
