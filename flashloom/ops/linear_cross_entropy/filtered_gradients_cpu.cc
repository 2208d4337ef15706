#include <algorithm>
#include <array>
#include <cmath>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/linear/gemm.h"
#include "flashloom/ops/linear_cross_entropy/filtered_gradients.h"
#include "flashloom/ops/linear_cross_entropy/sparse_rows.h"

namespace flashloom {
namespace {

// Sorting counts on every eighth row how often an entry is kept; what a sample says is enough for a
// choice that changes time alone.
constexpr int64_t kSample = 8;

// An entry that one row in so many keeps takes part in the dense product, which adds it to all
// rows but works in blocks. Shares of 1/16, 1/32 and 1/64 were not faster at V = 49,152 (the same
// within 5 %).
constexpr int64_t kDenseShare = 6;

// What the filter keeps of a row of a tile, the label's place always among it.
struct Kept {
  std::array<int32_t, kLogitTile> columns;
  std::array<float, kLogitTile> dz;
  int64_t count = 0;
};

// Of one chunk.
class Filtered {
 public:
  explicit Filtered(const LinearCrossEntropyPass& pass)
      : p_(pass), entries_(p_.at<int32_t>(p_.plan.dense_entry)) {}

  void run() {
    if (p_.options.sort_vocabulary) {
      sort_vocabulary();
    }
    if (p_.dhidden) {
      parallel_for(p_.rows, [&](int64_t i) { gather_row(i); });
      if (dense_ > 0) {
        gemm(row_sums(), dense_dz(), dense_weight(), {.beta = 1});
      }
      parallel_for(p_.rows, [&](int64_t i) {
        std::copy_n(row_sums().as<float>() + i * p_.channels, p_.channels, p_.dhidden_row(i));
      });
    }
    if (p_.dweight && p_.options.filter_weight_gradient) {
      parallel_for(p_.plan.slices, [&](int64_t slice) { scatter(slice); });
      scatter_dense();
      if (p_.options.label_smoothing > 0) {
        add_hidden();
      }
    }
  }

 private:
  int32_t* dense_place() const { return p_.at<int32_t>(p_.plan.dense_place); }

  TensorView row_sums() const { return {p_.at<float>(p_.plan.row_sums), {p_.rows, p_.channels}}; }

  TensorView dense_dz() const { return {p_.at<float>(p_.plan.dense_dz), {p_.rows, dense_}}; }

  TensorView dense_weight() const {
    return {p_.at<float>(p_.plan.dense_weight), {dense_, p_.channels}};
  }

  // Columns of a tile that a row keeps by its probability, in order.
  int64_t find(int64_t tile, int64_t i, int32_t* columns) const {
    const TensorView z = p_.logits(tile);
    return find_logits(z.as<float>() + i * kLogitTile, z.dim(1), p_.state(i).least_logit, columns);
  }

  // Puts first those entries that many rows keep; the others are not sorted, for they are taken up
  // one by one.
  void sort_vocabulary() {
    int32_t* count = dense_place();
    parallel_for(p_.plan.slices, [&](int64_t slice) {
      std::array<int32_t, kLogitTile> columns;
      for (int64_t tile = p_.first_tile(slice); tile < p_.end_tile(slice); ++tile) {
        int32_t* of_tile = count + tile * kLogitTile;
        std::fill_n(of_tile, p_.tile_columns(tile), 0);
        for (int64_t i = 0; i < p_.rows; i += kSample) {
          const int64_t found = find(tile, i, columns.data());
          for (int64_t k = 0; k < found; ++k) {
            ++of_tile[columns[static_cast<size_t>(k)]];
          }
        }
      }
    });
    // The least count that no more than plan.dense entries reach, if there is one.
    const int64_t sampled = tile_count(p_.rows, kSample);
    int64_t least = std::max<int64_t>(1, tile_count(sampled, kDenseShare));
    const auto reaching = [&](int64_t bound) {
      return std::count_if(count, count + p_.vocabulary, [&](int32_t n) { return n >= bound; });
    };
    while (least < sampled && reaching(least) > p_.plan.dense) {
      ++least;
    }
    dense_ = 0;
    for (int64_t v = 0; v < p_.vocabulary; ++v) {
      const bool dense = count[v] >= least && dense_ < p_.plan.dense;
      if (dense) {
        entries_[dense_] = static_cast<int32_t>(v);
      }
      dense_place()[v] = dense ? static_cast<int32_t>(dense_++) : -1;
    }
    const TensorView weights = dense_weight();
    parallel_for(dense_, [&](int64_t d) {
      std::copy_n(p_.weight.as<float>() + entries_[d] * p_.weight.stride(0), p_.channels,
                  weights.as<float>() + d * p_.channels);
    });
    std::fill_n(dense_dz().as<float>(), p_.rows * dense_, 0.0f);
  }

  // What a row of a tile keeps beside the dense entries, whose gradients go where their product
  // takes them.
  void keep(Kept& kept, int64_t tile, int64_t i) const {
    const float* row = p_.logits(tile).as<float>() + i * kLogitTile;
    const LogitRow& of = p_.state(i);
    const int64_t label = p_.label_column(i, tile);
    // The label's logit is kept whether it is found or not.
    int32_t* end = kept.columns.data() + find(tile, i, kept.columns.data());
    end = std::remove(kept.columns.data(), end, static_cast<int32_t>(label));
    const int64_t found = end - kept.columns.data();
    kept.count = 0;
    for (int64_t k = 0; k < found; ++k) {
      const int32_t column = kept.columns[static_cast<size_t>(k)];
      const float logit = row[column];
      const float ratio = p_.options.softcap > 0 ? logit / p_.options.softcap : 0;
      add(kept, tile, i, column, of.factor * std::exp(logit - of.maximum) * (1 - ratio * ratio));
    }
    if (label >= 0) {
      // Smoothing takes its part from all tokens alike, see begin_filtered_gradients().
      add(kept, tile, i, static_cast<int32_t>(label), of.label_gradient + p_.smoothing_gradient());
    }
  }

  void add(Kept& kept, int64_t tile, int64_t i, int32_t column, float dz) const {
    const int32_t place = dense_ > 0 ? dense_place()[tile * kLogitTile + column] : -1;
    if (place >= 0) {
      dense_dz().as<float>()[i * dense_ + place] = dz;
      return;
    }
    kept.columns[static_cast<size_t>(kept.count)] = column;
    kept.dz[static_cast<size_t>(kept.count)] = dz;
    ++kept.count;
  }

  void gather_row(int64_t i) const {
    float* out = row_sums().as<float>() + i * p_.channels;
    std::fill_n(out, p_.channels, 0.0f);
    if (p_.options.label_smoothing > 0) {
      const float* all = p_.at<float>(p_.plan.weight_sums);
      for (int64_t c = 0; c < p_.channels; ++c) {
        out[c] = -p_.smoothing_gradient() * all[c];
      }
    }
    Kept kept;
    for (int64_t tile = 0; tile < p_.plan.tiles; ++tile) {
      keep(kept, tile, i);
      const ConstTensorView rows = p_.weight_tile(tile);
      add_rows(out, p_.channels, rows.as<float>(), rows.stride(0), kept.columns.data(),
               kept.dz.data(), kept.count);
    }
  }

  void scatter(int64_t slice) const {
    constexpr int32_t kThis = 0;
    Kept kept;
    for (int64_t tile = p_.first_tile(slice); tile < p_.end_tile(slice); ++tile) {
      float* rows = p_.dweight.as<float>() + tile * kLogitTile * p_.dweight.stride(0);
      for (int64_t i = 0; i < p_.rows; ++i) {
        keep(kept, tile, i);
        const float* hidden = p_.x().as<float>() + i * p_.channels;
        for (int64_t k = 0; k < kept.count; ++k) {
          const auto at = static_cast<size_t>(k);
          add_rows(rows + kept.columns[at] * p_.dweight.stride(0), p_.channels, hidden, p_.channels,
                   &kThis, &kept.dz[at], 1);
        }
      }
    }
  }

  void scatter_dense() const {
    if (dense_ == 0) {
      return;
    }
    const TensorView sums = dense_weight();  // which have had their use
    gemm(sums, dense_dz(), p_.x(), {.transpose_a = true});
    parallel_for(dense_, [&](int64_t d) {
      float* out = p_.dweight.as<float>() + entries_[d] * p_.dweight.stride(0);
      const float* in = sums.as<float>() + d * p_.channels;
      for (int64_t c = 0; c < p_.channels; ++c) {
        out[c] += in[c];
      }
    });
  }

  void add_hidden() const {
    float* sum = p_.at<float>(p_.plan.hidden_sum);
    for (int64_t i = 0; i < p_.rows; ++i) {
      const float* hidden = p_.x().as<float>() + i * p_.channels;
      for (int64_t c = 0; c < p_.channels; ++c) {
        sum[c] += hidden[c];
      }
    }
  }

  const LinearCrossEntropyPass& p_;
  int32_t* entries_;
  int64_t dense_ = 0;
};

}  // namespace

void begin_filtered_gradients(const LinearCrossEntropyPass& pass) {
  std::fill_n(pass.at<float>(pass.plan.hidden_sum), pass.channels, 0.0f);
  if (pass.options.label_smoothing == 0 || !pass.dhidden) {
    return;
  }
  float* sums = pass.at<float>(pass.plan.weight_sums);
  parallel_for(pass.plan.slices, [&](int64_t slice) {
    float* sum = sums + slice * pass.channels;
    std::fill_n(sum, pass.channels, 0.0f);
    const int64_t end = std::min(pass.end_tile(slice) * kLogitTile, pass.vocabulary);
    for (int64_t v = pass.first_tile(slice) * kLogitTile; v < end; ++v) {
      const float* row = pass.weight.as<float>() + v * pass.weight.stride(0);
      for (int64_t c = 0; c < pass.channels; ++c) {
        sum[c] += row[c];
      }
    }
  });
  for (int64_t slice = 1; slice < pass.plan.slices; ++slice) {
    for (int64_t c = 0; c < pass.channels; ++c) {
      sums[c] += sums[slice * pass.channels + c];
    }
  }
}

void filtered_gradients(const LinearCrossEntropyPass& pass) {
  Filtered(pass).run();
}

void end_filtered_gradients(const LinearCrossEntropyPass& pass) {
  if (pass.options.label_smoothing == 0 || !pass.dweight || !pass.options.filter_weight_gradient) {
    return;
  }
  constexpr int64_t kRows = 64;  // a tile of work
  constexpr int32_t kThis = 0;
  const float factor = -pass.smoothing_gradient();
  parallel_for(tile_count(pass.vocabulary, kRows), [&](int64_t tile) {
    for (int64_t v = tile * kRows; v < std::min((tile + 1) * kRows, pass.vocabulary); ++v) {
      add_rows(pass.dweight.as<float>() + v * pass.dweight.stride(0), pass.channels,
               pass.at<float>(pass.plan.hidden_sum), pass.channels, &kThis, &factor, 1);
    }
  });
}

}  // namespace flashloom
