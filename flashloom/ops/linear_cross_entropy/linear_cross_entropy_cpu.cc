#include "flashloom/ops/linear_cross_entropy/linear_cross_entropy_cpu.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/linear/gemm.h"
#include "flashloom/ops/linear_cross_entropy/linear_cross_entropy_plan.h"
#include "flashloom/ops/linear_cross_entropy/logit_rows.h"
#include "flashloom/ops/linear_cross_entropy/sparse_rows.h"

namespace flashloom {
namespace {

void merge(LogitSums& sums, double maximum, double exp_sum, double sum) {
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
       std::span<std::byte> workspace, const LinearCrossEntropyPlan& plan,
       const LinearCrossEntropyOptions& options)
      : plan_(plan),
        options_(options),
        dhidden_(dhidden),
        dweight_(dweight),
        weight_(weight),
        labels_(labels.as<int32_t>()),
        channels_(weight.dim(1)),
        vocabulary_(weight.dim(0)) {
    const auto address = reinterpret_cast<uintptr_t>(workspace.data());
    memory_ = workspace.data() +
              (kWorkspaceAlignment - address % kWorkspaceAlignment) % kWorkspaceAlignment;
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
    const bool online = plan_.storage == LogitStorage::online;
    parallel_for(plan_.slices, [&](int64_t slice) {
      if (online) {
        attend(slice);
      } else {
        measure(slice);
      }
    });
    parallel_for(rows, [&](int64_t i) { loss.as<float>()[token(i)] = finish_row(i); });
    if (online) {
      parallel_for(rows, [&](int64_t i) { combine_partials(i); });
    } else if (plan_.storage == LogitStorage::chunk) {
      parallel_for(plan_.slices, [&](int64_t slice) { differentiate(slice); });
      if (dhidden_) {
        parallel_for(rows, [&](int64_t i) { sum_partials(i); });
      }
    } else if (plan_.storage == LogitStorage::filtered) {
      filtered_gradients();
    }
  }

 private:
  template <class T>
  T* at(int64_t offset) const {
    return reinterpret_cast<T*>(memory_ + offset);
  }

  int64_t token(int64_t row) const { return places()[first_ + row]; }

  TensorView x() const { return {at<float>(plan_.x), {rows_, channels_}}; }

  LogitSums& sums(int64_t slice, int64_t row) const {
    return at<LogitSums>(plan_.slice_sums)[slice * plan_.rows + row];
  }

  LogitRow& state(int64_t row) const { return at<LogitRow>(plan_.row_state)[row]; }

  TensorView partial(int64_t slice) const {
    return {at<float>(plan_.partial) + slice * plan_.rows * channels_, {rows_, channels_}};
  }

  // The logits of a tile: all tiles of a chunk are kept, else one a slice.
  TensorView logits(int64_t tile) const {
    const int64_t block = plan_.storage == LogitStorage::chunk ? tile : tile / plan_.slice_tiles;
    const TensorView view(at<float>(plan_.logits) + block * plan_.rows * kLogitTile,
                          {rows_, kLogitTile});
    return view.slice(1, 0, std::min(kLogitTile, vocabulary_ - tile * kLogitTile));
  }

  ConstTensorView weight_tile(int64_t tile) const {
    return weight_.slice(0, tile * kLogitTile,
                         std::min(kLogitTile, vocabulary_ - tile * kLogitTile));
  }

  // Where the label of `row` lies in `tile`, or -1.
  int64_t label_column(int64_t row, int64_t tile) const {
    const int64_t label = labels_[token(row)];
    return label / kLogitTile == tile ? label % kLogitTile : -1;
  }

  void clear_sums(int64_t slice) const {
    for (int64_t i = 0; i < rows_; ++i) {
      sums(slice, i) = {.exp_sum = 0, .sum = 0, .maximum = -std::numeric_limits<float>::infinity()};
    }
  }

  // Capped logits of a tile; notes those of labels.
  TensorView compute_logits(int64_t tile) const {
    const TensorView z = logits(tile);
    gemm(z, x(), weight_tile(tile), {.transpose_b = true});
    for (int64_t i = 0; i < rows_; ++i) {
      float* row = z.as<float>() + i * kLogitTile;
      if (options_.softcap > 0) {
        cap_logits(row, z.dim(1), options_.softcap);
      }
      if (const int64_t column = label_column(i, tile); column >= 0) {
        state(i).label_logit = row[column];
      }
    }
    return z;
  }

  // Sums over the logits of a slice.
  void measure(int64_t slice) const {
    clear_sums(slice);
    const int64_t end = std::min(plan_.tiles, (slice + 1) * plan_.slice_tiles);
    for (int64_t tile = slice * plan_.slice_tiles; tile < end; ++tile) {
      const TensorView z = compute_logits(tile);
      for (int64_t i = 0; i < rows_; ++i) {
        const LogitStatistics found = logit_statistics(z.as<float>() + i * kLogitTile, z.dim(1));
        merge(sums(slice, i), found.maximum, found.exp_sum, found.sum);
      }
    }
  }

  // Sums over a slice, and the sum of exp(z - maximum) slope w over its tokens as partial().
  void attend(int64_t slice) const {
    clear_sums(slice);
    const TensorView values = partial(slice);
    const int64_t begin = slice * plan_.slice_tiles;
    const int64_t end = std::min(plan_.tiles, begin + plan_.slice_tiles);
    for (int64_t tile = begin; tile < end; ++tile) {
      const TensorView z = compute_logits(tile);
      for (int64_t i = 0; i < rows_; ++i) {
        float* row = z.as<float>() + i * kLogitTile;
        LogitSums& all = sums(slice, i);
        const float maximum = std::max(all.maximum, logit_maximum(row, z.dim(1)));
        if (maximum > all.maximum) {
          const double shrink = std::exp(static_cast<double>(all.maximum) - maximum);
          all.exp_sum *= shrink;
          all.maximum = maximum;
          if (tile > begin) {
            float* value = values.as<float>() + i * channels_;
            for (int64_t c = 0; c < channels_; ++c) {
              value[c] *= static_cast<float>(shrink);
            }
          }
        }
        all.exp_sum += exponentiate_logits(row, z.dim(1), all.maximum, options_.softcap);
      }
      gemm(values, z, weight_tile(tile), {.beta = tile > begin ? 1.0f : 0.0f});
    }
  }

  float finish_row(int64_t i) const {
    LogitSums all = sums(0, i);
    for (int64_t slice = 1; slice < plan_.slices; ++slice) {
      const LogitSums& part = sums(slice, i);
      merge(all, part.maximum, part.exp_sum, part.sum);
    }
    const double lse = all.maximum + std::log(all.exp_sum);
    const double smoothing = options_.label_smoothing;
    const double scale = options_.gradient_scale;
    LogitRow& row = state(i);
    row.maximum = all.maximum;
    const double factor = scale * (1 + 2.0 * options_.z_loss * lse) / all.exp_sum;
    row.factor = static_cast<float>(factor);
    row.least_logit =
        static_cast<float>(all.maximum + std::log(options_.filter * all.exp_sum));  // or -infinity
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
    const int64_t end = std::min(plan_.tiles, begin + plan_.slice_tiles);
    const float constant =
        options_.gradient_scale * options_.label_smoothing / static_cast<float>(vocabulary_);
    for (int64_t tile = begin; tile < end; ++tile) {
      const TensorView dz = logits(tile);
      for (int64_t i = 0; i < rows_; ++i) {
        float* row = dz.as<float>() + i * kLogitTile;
        logit_gradients(row, dz.dim(1), state(i).maximum, state(i).factor, constant,
                        options_.softcap);
        if (const int64_t column = label_column(i, tile); column >= 0) {
          row[column] = state(i).label_gradient;
        }
      }
      if (dhidden_ && plan_.storage == LogitStorage::chunk) {
        gemm(partial(slice), dz, weight_tile(tile), {.beta = tile > begin ? 1.0f : 0.0f});
      }
      if (dweight_) {
        gemm(dweight_.slice(0, tile * kLogitTile, dz.dim(1)), dz, x(),
             {.transpose_a = true, .beta = 1});
      }
    }
  }

  // dhidden from the partial sums of attend(), each relative to the maximum of its slice.
  void combine_partials(int64_t i) const {
    const LogitRow& row = state(i);
    float* out = dhidden_.as<float>() + token(i) * dhidden_.stride(0);
    const int64_t label = labels_[token(i)] * weight_.stride(0);
    const double ratio = options_.softcap > 0 ? row.label_logit / options_.softcap : 0;
    const auto target = static_cast<float>(options_.gradient_scale * (1 - ratio * ratio));
    const auto subtract_label = [&](const auto* row_of_label) {
      for (int64_t c = 0; c < channels_; ++c) {
        out[c] = -target * static_cast<float>(row_of_label[c]);
      }
    };
    if (weight_.dtype == DType::bf16) {
      subtract_label(weight_.as<bf16>() + label);
    } else {
      subtract_label(weight_.as<float>() + label);
    }
    for (int64_t slice = 0; slice < plan_.slices; ++slice) {
      const float* part = partial(slice).as<float>() + i * channels_;
      const double shrink = std::exp(static_cast<double>(sums(slice, i).maximum) - row.maximum);
      const auto factor = static_cast<float>(row.factor * shrink);
      for (int64_t c = 0; c < channels_; ++c) {
        out[c] += factor * part[c];
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

  // dhidden comes first: differentiate() puts gradients where the logits were.
  void filtered_gradients() const {
    if (dhidden_) {
      parallel_for(rows_, [&](int64_t i) { gather_row(i); });
    }
    if (dweight_) {
      parallel_for(plan_.slices, [&](int64_t slice) {
        if (options_.filter_weight_gradient) {
          scatter(slice);
        } else {
          differentiate(slice);
        }
      });
    }
  }

  // What the filter keeps of a row of a tile, the label's place always among it.
  struct Kept {
    std::array<int32_t, kLogitTile> columns;
    std::array<float, kLogitTile> dz;
    int64_t count = 0;
  };

  void keep(Kept& kept, int64_t tile, int64_t i) const {
    const TensorView z = logits(tile);
    const float* row = z.as<float>() + i * kLogitTile;
    const LogitRow& of = state(i);
    const int64_t label = label_column(i, tile);
    // The label's logit is kept whether it is found or not.
    int32_t* end =
        kept.columns.data() + find_logits(row, z.dim(1), of.least_logit, kept.columns.data());
    end = std::remove(kept.columns.data(), end, static_cast<int32_t>(label));
    kept.count = end - kept.columns.data();
    for (int64_t k = 0; k < kept.count; ++k) {
      const auto at = static_cast<size_t>(k);
      const float logit = row[kept.columns[at]];
      const float ratio = options_.softcap > 0 ? logit / options_.softcap : 0;
      kept.dz[at] = of.factor * std::exp(logit - of.maximum) * (1 - ratio * ratio);
    }
    if (label >= 0) {
      kept.columns[static_cast<size_t>(kept.count)] = static_cast<int32_t>(label);
      kept.dz[static_cast<size_t>(kept.count)] = of.label_gradient;
      ++kept.count;
    }
  }

  void gather_row(int64_t i) const {
    float* out = dhidden_.as<float>() + token(i) * dhidden_.stride(0);
    std::fill_n(out, channels_, 0.0f);
    Kept kept;
    for (int64_t tile = 0; tile < plan_.tiles; ++tile) {
      keep(kept, tile, i);
      const ConstTensorView rows = weight_tile(tile);
      add_rows(out, channels_, rows.as<float>(), rows.stride(0), kept.columns.data(),
               kept.dz.data(), kept.count);
    }
  }

  void scatter(int64_t slice) const {
    constexpr int32_t kThis = 0;
    Kept kept;
    const int64_t end = std::min(plan_.tiles, (slice + 1) * plan_.slice_tiles);
    for (int64_t tile = slice * plan_.slice_tiles; tile < end; ++tile) {
      float* rows = dweight_.as<float>() + tile * kLogitTile * dweight_.stride(0);
      for (int64_t i = 0; i < rows_; ++i) {
        keep(kept, tile, i);
        const float* hidden = x().as<float>() + i * channels_;
        for (int64_t k = 0; k < kept.count; ++k) {
          const auto at = static_cast<size_t>(k);
          add_rows(rows + kept.columns[at] * dweight_.stride(0), channels_, hidden, channels_,
                   &kThis, &kept.dz[at], 1);
        }
      }
    }
  }

  LinearCrossEntropyPlan plan_;
  LinearCrossEntropyOptions options_;
  TensorView dhidden_;
  TensorView dweight_;
  ConstTensorView weight_;
  const int32_t* labels_;
  int64_t channels_;
  int64_t vocabulary_;
  std::byte* memory_;
  int64_t first_ = 0;
  int64_t rows_ = 0;
};

// Smoothing needs the sum of slopes over the vocabulary too; it is rare enough to keep the logits.
LogitStorage storage_of(const TensorView& dhidden, const TensorView& dweight,
                        const LinearCrossEntropyOptions& options) {
  if (!dhidden && !dweight) {
    return LogitStorage::none;
  }
  if (options.filter > 0) {
    return LogitStorage::filtered;
  }
  return dweight || options.label_smoothing > 0 ? LogitStorage::chunk : LogitStorage::online;
}

}  // namespace

void linear_cross_entropy_cpu(TensorView loss, TensorView dhidden, TensorView dweight,
                              ConstTensorView hidden, ConstTensorView weight,
                              ConstTensorView labels, std::span<std::byte> workspace,
                              const LinearCrossEntropyOptions& options) {
  const int64_t tokens = hidden.dim(0);
  const LinearCrossEntropyPlan plan = plan_linear_cross_entropy(
      tokens, hidden.dim(1), weight.dim(0), storage_of(dhidden, dweight, options));
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
  if (count == 0) {
    return;
  }
  // Chunks of nearly equal size, in whole register tiles: a last chunk of a few rows would read all
  // of the weight for them.
  const int64_t chunks = tile_count(count, plan.rows);
  const int64_t rows = std::min(tile_count(tile_count(count, chunks), 12) * 12, plan.rows);
  for (int64_t first = 0; first < count; first += rows) {
    pass.chunk(loss, hidden, first, std::min(rows, count - first));
  }
}

int64_t linear_cross_entropy_workspace_bytes_cpu(int64_t tokens, int64_t channels,
                                                 int64_t vocabulary, bool with_gradients,
                                                 bool keeps_logits) {
  const auto bytes = [&](LogitStorage storage) {
    return plan_linear_cross_entropy(tokens, channels, vocabulary, storage).bytes;
  };
  if (with_gradients && !keeps_logits) {
    return bytes(LogitStorage::online);
  }
  return with_gradients ? std::max({bytes(LogitStorage::online), bytes(LogitStorage::chunk),
                                    bytes(LogitStorage::filtered)})
                        : bytes(LogitStorage::none);
}

}  // namespace flashloom
