#include "flashloom/ops/linear_cross_entropy/linear_cross_entropy_cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/linear/gemm.h"
#include "flashloom/ops/linear_cross_entropy/logit_rows.h"

namespace flashloom {
namespace {

// Columns of logits that are computed, measured and turned into gradients while they are in cache.
// One block of the depth of gemm(), so that sums of dhidden are read and written once a tile.
constexpr int64_t kTile = 320;
// The vocabulary is cut into at most this many slices of whole tiles. A slice is the unit of
// parallel work and has a partial sum of dhidden of its own.
constexpr int64_t kMaxSlices = 32;
constexpr int64_t kRowUnit = 12;  // whole register tiles of gemm()
constexpr int64_t kMaxRows = 516;
constexpr int64_t kWorkspaceGoal = int64_t{96} << 20;
constexpr int64_t kAlignment = 64;

int64_t align(int64_t bytes) {
  return tile_count(bytes, kAlignment) * kAlignment;
}

// Cuts of the work and places in the workspace: a function of sizes alone.
struct Plan {
  int64_t slice_tiles = 0;  // tiles a slice
  int64_t slices = 0;
  int64_t rows = 0;  // of a chunk, at most

  // Offsets in bytes.
  int64_t places = 0;     // (tokens) i32: rows that bear loss
  int64_t x = 0;          // (rows, C): hidden rows of the chunk
  int64_t sums = 0;       // (slices, rows) SliceSums
  int64_t row_state = 0;  // (rows) RowState
  int64_t logits = 0;     // (tiles, rows, kTile) with gradients, else (slices, rows, kTile)
  int64_t partial = 0;    // (slices, rows, C) with gradients
  int64_t bytes = 0;
};

struct SliceSums {
  double exp_sum;  // of exp(z - maximum)
  double sum;      // of z
  float maximum;
};

struct RowState {
  float maximum;
  float factor;  // of exp(z - maximum) in dz
  float label_logit;
  float label_gradient;
};

Plan make_plan(int64_t tokens, int64_t channels, int64_t vocabulary, bool with_gradients) {
  Plan plan;
  const int64_t tiles = tile_count(vocabulary, kTile);
  plan.slice_tiles = std::max<int64_t>(1, tile_count(tiles, kMaxSlices));
  plan.slices = tile_count(tiles, plan.slice_tiles);
  const int64_t floats = with_gradients ? tiles * kTile + channels + plan.slices * channels
                                        : plan.slices * kTile + channels;
  const int64_t row_bytes = 4 * floats + static_cast<int64_t>(sizeof(RowState)) +
                            plan.slices * static_cast<int64_t>(sizeof(SliceSums));
  const int64_t fitting = kWorkspaceGoal / row_bytes / kRowUnit * kRowUnit;
  plan.rows = std::min(std::clamp(fitting, kRowUnit, kMaxRows), tokens);
  int64_t end = 0;
  const auto place = [&](int64_t bytes) {
    const int64_t at = end;
    end += align(bytes);
    return at;
  };
  plan.places = place(tokens * 4);
  plan.x = place(plan.rows * channels * 4);
  plan.sums = place(plan.slices * plan.rows * static_cast<int64_t>(sizeof(SliceSums)));
  plan.row_state = place(plan.rows * static_cast<int64_t>(sizeof(RowState)));
  plan.logits = place((with_gradients ? tiles : plan.slices) * plan.rows * kTile * 4);
  plan.partial = place(with_gradients ? plan.slices * plan.rows * channels * 4 : 0);
  plan.bytes = end + kAlignment;  // the workspace itself may start anywhere
  return plan;
}

void merge(SliceSums& sums, double maximum, double exp_sum, double sum) {
  sums.sum += sum;
  if (maximum > sums.maximum) {
    sums.exp_sum *= std::exp(static_cast<double>(sums.maximum) - maximum);
    sums.maximum = static_cast<float>(maximum);
  }
  // exp(-infinity - -infinity) would be NaN; an empty sum adds nothing.
  sums.exp_sum += exp_sum == 0 ? 0 : exp_sum * std::exp(maximum - sums.maximum);
}

// One call of the op: everything that its passes share.
class Pass {
 public:
  Pass(TensorView dhidden, TensorView dweight, ConstTensorView weight, ConstTensorView labels,
       std::span<std::byte> workspace, const Plan& plan, const LinearCrossEntropyOptions& options)
      : plan_(plan),
        options_(options),
        dhidden_(dhidden),
        dweight_(dweight),
        weight_(weight),
        labels_(labels.as<int32_t>()),
        channels_(weight.dim(1)),
        vocabulary_(weight.dim(0)),
        with_gradients_(dhidden || dweight) {
    const auto address = reinterpret_cast<uintptr_t>(workspace.data());
    memory_ = workspace.data() + (kAlignment - address % kAlignment) % kAlignment;
  }

  int32_t* places() const { return at<int32_t>(plan_.places); }

  // Losses and gradients of `rows` rows, the tokens places()[first…].
  void chunk(TensorView loss, ConstTensorView hidden, int64_t first, int64_t rows) {
    first_ = first;
    rows_ = rows;
    parallel_for(rows, [&](int64_t i) {
      const float* from = hidden.as<float>() + token(i) * hidden.stride(0);
      std::copy_n(from, channels_, at<float>(plan_.x) + i * channels_);
    });
    parallel_for(plan_.slices, [&](int64_t slice) { measure(slice); });
    parallel_for(rows, [&](int64_t i) { loss.as<float>()[token(i)] = finish_row(i); });
    if (!with_gradients_) {
      return;
    }
    parallel_for(plan_.slices, [&](int64_t slice) { differentiate(slice); });
    if (dhidden_) {
      parallel_for(rows, [&](int64_t i) { sum_partials(i); });
    }
  }

 private:
  template <class T>
  T* at(int64_t offset) const {
    return reinterpret_cast<T*>(memory_ + offset);
  }

  int64_t token(int64_t row) const { return places()[first_ + row]; }

  int64_t tiles() const { return tile_count(vocabulary_, kTile); }

  TensorView x() const { return {at<float>(plan_.x), {rows_, channels_}}; }

  SliceSums& sums(int64_t slice, int64_t row) const {
    return at<SliceSums>(plan_.sums)[slice * plan_.rows + row];
  }

  RowState& state(int64_t row) const { return at<RowState>(plan_.row_state)[row]; }

  TensorView partial(int64_t slice) const {
    return {at<float>(plan_.partial) + slice * plan_.rows * channels_, {rows_, channels_}};
  }

  // The logits of a tile: all of them are kept for the gradients, else one a slice.
  TensorView logits(int64_t tile) const {
    const int64_t block = with_gradients_ ? tile : tile / plan_.slice_tiles;
    const TensorView view(at<float>(plan_.logits) + block * plan_.rows * kTile, {rows_, kTile});
    return view.slice(1, 0, std::min(kTile, vocabulary_ - tile * kTile));
  }

  ConstTensorView weight_tile(int64_t tile) const {
    return weight_.slice(0, tile * kTile, std::min(kTile, vocabulary_ - tile * kTile));
  }

  // Where the label of `row` lies in `tile`, or -1.
  int64_t label_column(int64_t row, int64_t tile) const {
    const int64_t label = labels_[token(row)];
    return label / kTile == tile ? label % kTile : -1;
  }

  void measure(int64_t slice) const {
    for (int64_t i = 0; i < rows_; ++i) {
      sums(slice, i) = {.exp_sum = 0, .sum = 0, .maximum = -std::numeric_limits<float>::infinity()};
    }
    const int64_t end = std::min(tiles(), (slice + 1) * plan_.slice_tiles);
    for (int64_t tile = slice * plan_.slice_tiles; tile < end; ++tile) {
      const TensorView z = logits(tile);
      gemm(z, x(), weight_tile(tile), {.transpose_b = true});
      for (int64_t i = 0; i < rows_; ++i) {
        float* row = z.as<float>() + i * kTile;
        const LogitStatistics found = logit_statistics(row, z.dim(1), options_.softcap);
        merge(sums(slice, i), found.maximum, found.exp_sum, found.sum);
        if (const int64_t column = label_column(i, tile); column >= 0) {
          state(i).label_logit = row[column];
        }
      }
    }
  }

  float finish_row(int64_t i) const {
    SliceSums all = sums(0, i);
    for (int64_t slice = 1; slice < plan_.slices; ++slice) {
      const SliceSums& part = sums(slice, i);
      merge(all, part.maximum, part.exp_sum, part.sum);
    }
    const double lse = all.maximum + std::log(all.exp_sum);
    const double smoothing = options_.label_smoothing;
    const double scale = options_.gradient_scale;
    RowState& row = state(i);
    row.maximum = all.maximum;
    const double factor = scale * (1 + 2.0 * options_.z_loss * lse) / all.exp_sum;
    row.factor = static_cast<float>(factor);
    const double label = row.label_logit;
    const double ratio = options_.softcap > 0 ? label / options_.softcap : 0;
    row.label_gradient =
        static_cast<float>((factor * std::exp(label - all.maximum) - scale * (1 - smoothing) -
                            scale * smoothing / static_cast<double>(vocabulary_)) *
                           (1 - ratio * ratio));
    // With smoothing 0 the mean must not matter: -infinity times 0 is NaN.
    const double smooth =
        smoothing > 0 ? smoothing * (lse - all.sum / static_cast<double>(vocabulary_)) : 0;
    return static_cast<float>((1 - smoothing) * (lse - label) + smooth +
                              options_.z_loss * lse * lse);
  }

  void differentiate(int64_t slice) const {
    const int64_t begin = slice * plan_.slice_tiles;
    const int64_t end = std::min(tiles(), begin + plan_.slice_tiles);
    const float constant =
        options_.gradient_scale * options_.label_smoothing / static_cast<float>(vocabulary_);
    for (int64_t tile = begin; tile < end; ++tile) {
      const TensorView dz = logits(tile);
      for (int64_t i = 0; i < rows_; ++i) {
        float* row = dz.as<float>() + i * kTile;
        logit_gradients(row, dz.dim(1), state(i).maximum, state(i).factor, constant,
                        options_.softcap);
        if (const int64_t column = label_column(i, tile); column >= 0) {
          row[column] = state(i).label_gradient;
        }
      }
      if (dhidden_) {
        gemm(partial(slice), dz, weight_tile(tile), {.beta = tile > begin ? 1.0f : 0.0f});
      }
      if (dweight_) {
        gemm(dweight_.slice(0, tile * kTile, dz.dim(1)), dz, x(), {.transpose_a = true, .beta = 1});
      }
    }
  }

  void sum_partials(int64_t i) const {
    float* out = dhidden_.as<float>() + token(i) * dhidden_.stride(0);
    std::copy_n(partial(0).as<float>() + i * channels_, channels_, out);
    for (int64_t slice = 1; slice < plan_.slices; ++slice) {
      const float* part = partial(slice).as<float>() + i * channels_;
      for (int64_t c = 0; c < channels_; ++c) {
        out[c] += part[c];
      }
    }
  }

  Plan plan_;
  LinearCrossEntropyOptions options_;
  TensorView dhidden_;
  TensorView dweight_;
  ConstTensorView weight_;
  const int32_t* labels_;
  int64_t channels_;
  int64_t vocabulary_;
  bool with_gradients_;
  std::byte* memory_;
  int64_t first_ = 0;
  int64_t rows_ = 0;
};

}  // namespace

void linear_cross_entropy_cpu(TensorView loss, TensorView dhidden, TensorView dweight,
                              ConstTensorView hidden, ConstTensorView weight,
                              ConstTensorView labels, std::span<std::byte> workspace,
                              const LinearCrossEntropyOptions& options) {
  const int64_t tokens = hidden.dim(0);
  const Plan plan = make_plan(tokens, hidden.dim(1), weight.dim(0), dhidden || dweight);
  Pass pass(dhidden, dweight, weight, labels, workspace, plan, options);
  int64_t count = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    if (labels.as<int32_t>()[t] != kIgnoredLabel) {
      pass.places()[count++] = static_cast<int32_t>(t);
      continue;
    }
    loss.as<float>()[t] = 0;
    if (dhidden) {
      std::fill_n(dhidden.as<float>() + t * dhidden.stride(0), dhidden.dim(1), 0.0f);
    }
  }
  // Chunks of nearly equal size: a last chunk of a few rows would read all of the weight for them.
  const int64_t chunks = std::max<int64_t>(1, tile_count(count, plan.rows));
  const int64_t even = tile_count(tile_count(count, chunks), kRowUnit) * kRowUnit;
  const int64_t rows = std::min(even, plan.rows);
  for (int64_t first = 0; first < count; first += rows) {
    pass.chunk(loss, hidden, first, std::min(rows, count - first));
  }
}

int64_t linear_cross_entropy_workspace_bytes_cpu(int64_t tokens, int64_t channels,
                                                 int64_t vocabulary, bool with_gradients) {
  return make_plan(tokens, channels, vocabulary, with_gradients).bytes;
}

}  // namespace flashloom
