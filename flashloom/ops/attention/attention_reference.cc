#include "flashloom/ops/attention/attention_reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/attention_rows.h"
#include "flashloom/ops/attention/reference_head.h"

namespace flashloom {
namespace {

constexpr double kHidden = -std::numeric_limits<double>::infinity();

struct OutputRows {
  TensorView out;          // (rows, E)
  TensorView lse;          // (rows) or absent
  TensorView entropy;      // (rows) or absent
  double out_scale = 1;    // stored value x scale = value
  double largest_out = 0;  // before scaling
};

void write_row(OutputRows& rows, int64_t row, const std::vector<double>& out, double lse,
               double entropy) {
  for (int64_t e = 0; e < rows.out.dim(1); ++e) {
    const double value = out[static_cast<size_t>(e)];
    rows.largest_out = std::max(rows.largest_out, std::fabs(value));
    store_element(rows.out.data, rows.out.dtype, row * rows.out.stride(0) + e,
                  value / rows.out_scale);
  }
  if (rows.lse) {
    store_element(rows.lse.data, rows.lse.dtype, row * rows.lse.stride(0), lse);
  }
  if (rows.entropy) {
    store_element(rows.entropy.data, rows.entropy.dtype, row * rows.entropy.stride(0), entropy);
  }
}

double entropy_of(const std::vector<double>& scores, const ReferenceHead& head, double lse,
                  double order) {
  double sum = 0;
  const auto add = [&](double score) {
    if (score != kHidden) {
      sum += order == 1 ? std::exp(score - lse) * (lse - score) : std::exp(order * (score - lse));
    }
  };
  std::for_each(scores.begin(), scores.end(), add);
  if (head.has_sink()) {
    add(head.sink());
  }
  return order == 1 ? sum : std::log(sum) / (1 - order);
}

void finish_row(OutputRows& rows, const ReferenceHead& head, int64_t i,
                const std::vector<double>& scores, double entropy_order) {
  double largest = head.has_sink() ? head.sink() : kHidden;
  for (const double score : scores) {
    largest = std::max(largest, score);
  }
  std::vector<double> out(static_cast<size_t>(rows.out.dim(1)), 0.0);
  double lse = kHidden;
  double entropy = 0;
  if (largest > kHidden) {
    double sum = head.has_sink() ? std::exp(head.sink() - largest) : 0;
    for (const double score : scores) {
      sum += score != kHidden ? std::exp(score - largest) : 0;
    }
    lse = largest + std::log(sum);
    for (int64_t j = 0; j < head.keys(); ++j) {
      const double score = scores[static_cast<size_t>(j)];
      if (score != kHidden) {
        const double weight = std::exp(score - lse) * head.dropout_factor(i, j);
        for (size_t e = 0; e < out.size(); ++e) {
          out[e] += weight * head.v(j)[e];
        }
      }
    }
    entropy = rows.entropy ? entropy_of(scores, head, lse, entropy_order) : 0;
  }
  write_row(rows, head.output_row(i), out, lse, entropy);
}

// The gate of one block of query rows: hides skipped tiles in `scores`.
class ReferenceGate {
 public:
  ReferenceGate(const AttentionGate& gate, int64_t sequence, int64_t head, int64_t block)
      : gate_(gate) {
    const ConstTensorView row = gate.threshold.select(0, head);
    threshold_ = load_element(row.data, row.dtype, std::min(block, row.dim(0) - 1) * row.stride(0));
    if (gate.kept) {
      kept_ = gate.kept.select(0, sequence).select(0, head).select(0, block);
      for (int64_t word = 0; word < kept_.dim(0); ++word) {
        static_cast<int32_t*>(kept_.data)[word * kept_.stride(0)] = 0;
      }
    }
  }

  void apply(std::vector<std::vector<double>>& scores, int64_t keys, bool whole_rows,
             std::vector<double>& dropped) const {
    std::vector<double> running(scores.size(), kHidden);
    dropped.assign(scores.size(), 0.0);
    for (int64_t first = 0; first < keys; first += gate_.keys) {
      const int64_t end = std::min(first + gate_.keys, keys);
      bool any = false;
      bool skip = whole_rows && end - first == gate_.keys;
      std::vector<double> largest(scores.size(), kHidden);
      for (size_t i = 0; i < scores.size(); ++i) {
        for (int64_t j = first; j < end; ++j) {
          const double score = scores[i][static_cast<size_t>(j)];
          skip = skip && score > kHidden;
          any = any || score > kHidden;
          largest[i] = std::max(largest[i], score);
        }
        skip = skip &&
               (gate_.kind == AttentionGate::Kind::absolute ? largest[i] < threshold_
                                                            : running[i] - largest[i] > threshold_);
      }
      for (size_t i = 0; i < scores.size(); ++i) {
        if (skip) {
          // The bound, not the mass itself: one exponential a row and tile.
          dropped[i] += static_cast<double>(gate_.keys) * std::exp(largest[i]);
          std::fill_n(scores[i].begin() + first, gate_.keys, kHidden);
        } else {
          running[i] = std::max(running[i], largest[i]);
        }
      }
      if (any && !skip && kept_) {
        const int64_t tile = first / gate_.keys;
        auto& word = static_cast<int32_t*>(kept_.data)[tile / 32 * kept_.stride(0)];
        word = static_cast<int32_t>(static_cast<uint32_t>(word) | 1u << (tile % 32));
      }
    }
  }

 private:
  const AttentionGate& gate_;
  double threshold_ = 0;
  TensorView kept_;
};

void forward_head(OutputRows& rows, const ReferenceHead& head, const AttentionOptions& options,
                  int32_t sequence, int32_t head_index, double entropy_order) {
  const AttentionGate& gate = options.gate;
  const bool gated = gate.kind != AttentionGate::Kind::none;
  const int64_t block = gated ? gate.rows : 1;
  std::vector<std::vector<double>> scores;
  std::vector<double> dropped;
  for (int64_t first = 0; first < head.queries(); first += block) {
    const int64_t count = std::min(block, head.queries() - first);
    scores.resize(static_cast<size_t>(count));
    for (int64_t i = 0; i < count; ++i) {
      head.scores(first + i, scores[static_cast<size_t>(i)]);
    }
    if (gated) {
      ReferenceGate(gate, sequence, head_index, first / block)
          .apply(scores, head.keys(), count == block, dropped);
    }
    for (int64_t i = 0; i < count; ++i) {
      const auto& row = scores[static_cast<size_t>(i)];
      if (gated && gate.dropped_mass) {
        double mass = head.has_sink() ? std::exp(head.sink()) : 0;
        for (const double score : row) {
          mass += std::exp(score);
        }
        const double lost = dropped[static_cast<size_t>(i)];
        const TensorView out = gate.dropped_mass.select(0, sequence).select(0, head_index);
        store_element(out.data, out.dtype, (first + i) * out.stride(0),
                      lost > 0 ? lost / (lost + mass) : 0);
      }
      if (head.output_row(first + i) >= 0) {
        finish_row(rows, head, first + i, row, entropy_order);
      }
    }
  }
}

}  // namespace

void attention_forward_reference(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                                 const AttentionOptions& options) {
  const GeometrySource source = geometry_source(inputs, options);
  const bool packed = source.cu_query != nullptr;
  std::vector<double> largest(static_cast<size_t>(source.sequences) * source.heads, 0.0);
  parallel_for(int64_t{source.sequences} * source.heads, [&](int64_t task) {
    const auto sequence = static_cast<int32_t>(task / source.heads);
    const auto h = static_cast<int32_t>(task % source.heads);
    const ReferenceHead head(inputs, options, source, sequence, h);
    const SequenceRows& lengths = head.rows();
    OutputRows rows;
    rows.out = attention_head_rows(outputs.out, packed, sequence, h, lengths.query_first);
    if (outputs.lse) {
      rows.lse = attention_head_rows(outputs.lse, packed, sequence, h, lengths.query_first);
    }
    if (outputs.entropy) {
      rows.entropy = attention_head_rows(outputs.entropy, packed, sequence, h, lengths.query_first);
    }
    if (options.fp8.out_scale) {
      const ConstTensorView& scale = options.fp8.out_scale;
      const ConstTensorView one = scale.rank < 2 ? scale : broadcast_head(scale, sequence, h);
      rows.out_scale = load_element(one.data, one.dtype, 0);
    }
    const std::vector<double> nothing(static_cast<size_t>(rows.out.dim(1)), 0.0);
    for (int64_t i = 0; i < lengths.query_rows; ++i) {
      write_row(rows, i, nothing, kHidden, 0);
    }
    forward_head(rows, head, options, sequence, h, outputs.entropy_order);
    largest[static_cast<size_t>(task)] = rows.largest_out;
  });
  if (options.fp8.amax_out) {
    store_element(options.fp8.amax_out.data, options.fp8.amax_out.dtype, 0,
                  largest.empty() ? 0 : *std::max_element(largest.begin(), largest.end()));
  }
}

void attention_merge_reference(TensorView out, TensorView lse, ConstTensorView parts,
                               ConstTensorView part_lse, ConstTensorView sinks) {
  // A packed call has no batch dimension; give it one of size 1.
  const bool packed = out.rank == 3;
  const int64_t batch = packed ? 1 : out.dim(0);
  const int64_t heads = out.dim(packed ? 0 : 1);
  const int64_t rows = out.dim(-2);
  for (int64_t b = 0; b < batch; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      const TensorView out_rows = attention_head_rows(out, packed, b, h, 0);
      const TensorView lse_rows = lse ? attention_head_rows(lse, packed, b, h, 0) : TensorView{};
      for (int64_t i = 0; i < rows; ++i) {
        std::vector<double> sums(static_cast<size_t>(out.dim(-1)), 0.0);
        std::vector<double> logs;
        double largest = kHidden;
        for (int64_t p = 0; p < parts.dim(0); ++p) {
          const ConstTensorView row = attention_head_rows(part_lse.select(0, p), packed, b, h, i);
          logs.push_back(load_element(row.data, row.dtype, 0));
          largest = std::max(largest, logs.back());
        }
        const double sink =
            sinks ? load_element(sinks.data, sinks.dtype, h * sinks.stride(0)) : kHidden;
        largest = std::max(largest, sink);
        double total = 0;
        if (largest > kHidden) {
          total = sink > kHidden ? std::exp(sink - largest) : 0;
          for (size_t p = 0; p < logs.size(); ++p) {
            const double weight = logs[p] > kHidden ? std::exp(logs[p] - largest) : 0;
            total += weight;
            const ConstTensorView row =
                attention_head_rows(parts.select(0, static_cast<int64_t>(p)), packed, b, h, i);
            for (size_t e = 0; weight > 0 && e < sums.size(); ++e) {
              sums[e] += weight * load_element(row.data, row.dtype, static_cast<int64_t>(e));
            }
          }
        }
        for (size_t e = 0; e < sums.size(); ++e) {
          store_element(out_rows.data, out_rows.dtype,
                        i * out_rows.stride(0) + static_cast<int64_t>(e),
                        total > 0 ? sums[e] / total : 0);
        }
        if (lse_rows) {
          store_element(lse_rows.data, lse_rows.dtype, i * lse_rows.stride(0),
                        total > 0 ? largest + std::log(total) : kHidden);
        }
      }
    }
  }
}

}  // namespace flashloom
