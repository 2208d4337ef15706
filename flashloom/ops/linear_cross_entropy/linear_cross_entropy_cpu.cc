#include "flashloom/ops/linear_cross_entropy/linear_cross_entropy_cpu.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/linear/gemm.h"
#include "flashloom/ops/linear_cross_entropy/filtered_gradients.h"
#include "flashloom/ops/linear_cross_entropy/linear_cross_entropy_pass.h"
#include "flashloom/ops/linear_cross_entropy/linear_cross_entropy_plan.h"
#include "flashloom/ops/linear_cross_entropy/logit_rows.h"

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

// The stages of a chunk of rows.
class Chunk {
 public:
  explicit Chunk(const LinearCrossEntropyPass& pass) : p_(pass) {}

  // Losses and gradients.
  void run(TensorView loss, ConstTensorView hidden) {
    parallel_for(p_.rows, [&](int64_t i) {
      const float* from = hidden.as<float>() + p_.token(i) * hidden.stride(0);
      std::copy_n(from, p_.channels, p_.x().as<float>() + i * p_.channels);
    });
    const bool online = p_.plan.storage == LogitStorage::online;
    parallel_for(p_.plan.slices, [&](int64_t slice) {
      if (online) {
        attend(slice);
      } else {
        measure(slice);
      }
    });
    parallel_for(p_.rows, [&](int64_t i) { loss.as<float>()[p_.token(i)] = finish_row(i); });
    if (online) {
      parallel_for(p_.rows, [&](int64_t i) { combine_partials(i); });
    } else if (p_.plan.storage == LogitStorage::chunk) {
      parallel_for(p_.plan.slices, [&](int64_t slice) { differentiate(slice); });
      if (p_.dhidden) {
        parallel_for(p_.rows, [&](int64_t i) { sum_partials(i); });
      }
    } else if (p_.plan.storage == LogitStorage::filtered) {
      filtered_gradients(p_);
      // Puts gradients where the logits were, so it comes last.
      if (p_.dweight && !p_.options.filter_weight_gradient) {
        parallel_for(p_.plan.slices, [&](int64_t slice) { differentiate(slice); });
      }
    }
  }

 private:
  void clear_sums(int64_t slice) const {
    for (int64_t i = 0; i < p_.rows; ++i) {
      p_.sums(slice, i) = {
          .exp_sum = 0, .sum = 0, .maximum = -std::numeric_limits<float>::infinity()};
    }
  }

  // Capped logits of a tile; notes those of labels.
  TensorView compute_logits(int64_t tile) const {
    const TensorView z = p_.logits(tile);
    gemm(z, p_.x(), p_.weight_tile(tile), {.transpose_b = true});
    for (int64_t i = 0; i < p_.rows; ++i) {
      float* row = z.as<float>() + i * kLogitTile;
      if (p_.options.softcap > 0) {
        cap_logits(row, z.dim(1), p_.options.softcap);
      }
      if (const int64_t column = p_.label_column(i, tile); column >= 0) {
        p_.state(i).label_logit = row[column];
      }
    }
    return z;
  }

  // Sums over the logits of a slice.
  void measure(int64_t slice) const {
    clear_sums(slice);
    for (int64_t tile = p_.first_tile(slice); tile < p_.end_tile(slice); ++tile) {
      const TensorView z = compute_logits(tile);
      for (int64_t i = 0; i < p_.rows; ++i) {
        const LogitStatistics found = logit_statistics(z.as<float>() + i * kLogitTile, z.dim(1));
        merge(p_.sums(slice, i), found.maximum, found.exp_sum, found.sum);
      }
    }
  }

  // Sums over a slice, and the sum of exp(z - maximum) slope w over its tokens as partial().
  void attend(int64_t slice) const {
    clear_sums(slice);
    const TensorView values = p_.partial(slice);
    const int64_t begin = p_.first_tile(slice);
    for (int64_t tile = begin; tile < p_.end_tile(slice); ++tile) {
      const TensorView z = compute_logits(tile);
      for (int64_t i = 0; i < p_.rows; ++i) {
        float* row = z.as<float>() + i * kLogitTile;
        LogitSums& all = p_.sums(slice, i);
        const float maximum = std::max(all.maximum, logit_maximum(row, z.dim(1)));
        if (maximum > all.maximum) {
          const double shrink = std::exp(static_cast<double>(all.maximum) - maximum);
          all.exp_sum *= shrink;
          all.maximum = maximum;
          if (tile > begin) {
            float* value = values.as<float>() + i * p_.channels;
            for (int64_t c = 0; c < p_.channels; ++c) {
              value[c] *= static_cast<float>(shrink);
            }
          }
        }
        all.exp_sum += exponentiate_logits(row, z.dim(1), all.maximum, p_.options.softcap);
      }
      gemm(values, z, p_.weight_tile(tile), {.beta = tile > begin ? 1.0f : 0.0f});
    }
  }

  float finish_row(int64_t i) const {
    LogitSums all = p_.sums(0, i);
    for (int64_t slice = 1; slice < p_.plan.slices; ++slice) {
      const LogitSums& part = p_.sums(slice, i);
      merge(all, part.maximum, part.exp_sum, part.sum);
    }
    const LinearCrossEntropyOptions& options = p_.options;
    const double lse = all.maximum + std::log(all.exp_sum);
    const double smoothing = options.label_smoothing;
    const double scale = options.gradient_scale;
    const auto vocabulary = static_cast<double>(p_.vocabulary);
    LogitRow& row = p_.state(i);
    row.maximum = all.maximum;
    const double factor = scale * (1 + 2.0 * options.z_loss * lse) / all.exp_sum;
    row.factor = static_cast<float>(factor);
    row.least_logit =
        static_cast<float>(all.maximum + std::log(options.filter * all.exp_sum));  // or -infinity
    const double label = row.label_logit;
    const double ratio = options.softcap > 0 ? label / options.softcap : 0;
    row.label_gradient =
        static_cast<float>((factor * std::exp(label - all.maximum) - scale * (1 - smoothing) -
                            scale * smoothing / vocabulary) *
                           (1 - ratio * ratio));
    // With smoothing 0 the mean must not matter: -infinity times 0 is NaN.
    const double smooth = smoothing > 0 ? smoothing * (lse - all.sum / vocabulary) : 0;
    return static_cast<float>((1 - smoothing) * (lse - label) + smooth +
                              options.z_loss * lse * lse);
  }

  void differentiate(int64_t slice) const {
    const int64_t begin = p_.first_tile(slice);
    for (int64_t tile = begin; tile < p_.end_tile(slice); ++tile) {
      const TensorView dz = p_.logits(tile);
      for (int64_t i = 0; i < p_.rows; ++i) {
        float* row = dz.as<float>() + i * kLogitTile;
        logit_gradients(row, dz.dim(1), p_.state(i).maximum, p_.state(i).factor,
                        p_.smoothing_gradient(), p_.options.softcap);
        if (const int64_t column = p_.label_column(i, tile); column >= 0) {
          row[column] = p_.state(i).label_gradient;
        }
      }
      if (p_.dhidden && p_.plan.storage == LogitStorage::chunk) {
        gemm(p_.partial(slice), dz, p_.weight_tile(tile), {.beta = tile > begin ? 1.0f : 0.0f});
      }
      if (p_.dweight) {
        gemm(p_.dweight.slice(0, tile * kLogitTile, dz.dim(1)), dz, p_.x(),
             {.transpose_a = true, .beta = 1});
      }
    }
  }

  // dhidden from the partial sums of attend(), each relative to the maximum of its slice.
  void combine_partials(int64_t i) const {
    const LogitRow& row = p_.state(i);
    float* out = p_.dhidden_row(i);
    const int64_t label = p_.labels[p_.token(i)] * p_.weight.stride(0);
    const double ratio = p_.options.softcap > 0 ? row.label_logit / p_.options.softcap : 0;
    const auto target = static_cast<float>(p_.options.gradient_scale * (1 - ratio * ratio));
    const auto subtract_label = [&](const auto* row_of_label) {
      for (int64_t c = 0; c < p_.channels; ++c) {
        out[c] = -target * static_cast<float>(row_of_label[c]);
      }
    };
    if (p_.weight.dtype == DType::bf16) {
      subtract_label(p_.weight.as<bf16>() + label);
    } else {
      subtract_label(p_.weight.as<float>() + label);
    }
    for (int64_t slice = 0; slice < p_.plan.slices; ++slice) {
      const float* part = p_.partial(slice).as<float>() + i * p_.channels;
      const double shrink = std::exp(static_cast<double>(p_.sums(slice, i).maximum) - row.maximum);
      const auto factor = static_cast<float>(row.factor * shrink);
      for (int64_t c = 0; c < p_.channels; ++c) {
        out[c] += factor * part[c];
      }
    }
  }

  void sum_partials(int64_t i) const {
    float* out = p_.dhidden_row(i);
    std::copy_n(p_.partial(0).as<float>() + i * p_.channels, p_.channels, out);
    for (int64_t slice = 1; slice < p_.plan.slices; ++slice) {
      const float* part = p_.partial(slice).as<float>() + i * p_.channels;
      for (int64_t c = 0; c < p_.channels; ++c) {
        out[c] += part[c];
      }
    }
  }

  const LinearCrossEntropyPass& p_;
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

std::byte* aligned(std::span<std::byte> workspace) {
  const auto address = reinterpret_cast<uintptr_t>(workspace.data());
  return workspace.data() +
         (kWorkspaceAlignment - address % kWorkspaceAlignment) % kWorkspaceAlignment;
}

}  // namespace

void linear_cross_entropy_cpu(TensorView loss, TensorView dhidden, TensorView dweight,
                              ConstTensorView hidden, ConstTensorView weight,
                              ConstTensorView labels, std::span<std::byte> workspace,
                              const LinearCrossEntropyOptions& options) {
  const int64_t tokens = hidden.dim(0);
  LinearCrossEntropyPass pass = {
      .plan = plan_linear_cross_entropy(tokens, hidden.dim(1), weight.dim(0),
                                        storage_of(dhidden, dweight, options)),
      .options = options,
      .dhidden = dhidden,
      .dweight = dweight,
      .weight = weight,
      .labels = labels.as<int32_t>(),
      .channels = weight.dim(1),
      .vocabulary = weight.dim(0),
      .memory = aligned(workspace)};
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
  const bool filtered = pass.plan.storage == LogitStorage::filtered;
  if (filtered) {
    begin_filtered_gradients(pass);
  }
  // Chunks of nearly equal size, in whole register tiles: a last chunk of a few rows would read all
  // of the weight for them.
  const int64_t chunks = tile_count(count, pass.plan.rows);
  const int64_t rows = std::min(tile_count(tile_count(count, chunks), 12) * 12, pass.plan.rows);
  for (int64_t first = 0; first < count; first += rows) {
    pass.first = first;
    pass.rows = std::min(rows, count - first);
    Chunk(pass).run(loss, hidden);
  }
  if (filtered) {
    end_filtered_gradients(pass);
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
