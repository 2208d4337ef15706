#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "flashloom/ops/attention/attention_reference.h"
#include "flashloom/ops/attention/attention_rows.h"
#include "flashloom/ops/attention/reference_head.h"

namespace flashloom {
namespace {

constexpr double kHidden = -std::numeric_limits<double>::infinity();

// What the rows of one head bring along, by row of out.
struct SavedRows {
  ConstTensorView out, dout;                     // (rows, E)
  ConstTensorView lse, entropy, dlse, dentropy;  // (rows)
};

double scalar(const ConstTensorView& rows, int64_t row) {
  return rows ? load_element(rows.data, rows.dtype, row * rows.stride(0)) : 0;
}

SavedRows saved_rows(const AttentionSaved& saved, bool packed, int64_t sequence, int64_t head,
                     int64_t first) {
  const auto rows = [&](const ConstTensorView& view) {
    return attention_head_rows(view, packed, sequence, head, first);
  };
  const auto rows_if_given = [&](const ConstTensorView& view) {
    return view ? rows(view) : ConstTensorView{};
  };
  return {rows(saved.out),           rows(saved.dout),
          rows(saved.lse),           rows_if_given(saved.entropy),
          rows_if_given(saved.dlse), rows_if_given(saved.dentropy)};
}

// dS of one row from P, dP: the softmax with its outputs out, lse and entropy.
struct RowGradient {
  double lse, entropy, dlse, dentropy, order;
  double delta;  // sum of dout o out

  double operator()(double score, double dp) const {
    const double p = std::exp(score - lse);
    double ds = p * (dp - delta + dlse);
    if (dentropy != 0) {
      if (order == 1) {
        ds -= p * dentropy * (score - lse + entropy);
      } else {
        // d/ds of log(sum p^a) / (1 - a); the sum is exp((1 - a) entropy).
        const double share = std::exp(order * (score - lse) - (1 - order) * entropy);
        ds += dentropy * order / (1 - order) * (share - p);
      }
    }
    return ds;
  }
};

struct HeadGradients {
  std::vector<double> dq, dk, dv;
  double dsink = 0;
};

void backward_head(HeadGradients& gradients, const ReferenceHead& head, const SavedRows& saved,
                   double order, int64_t head_dim, const TensorView& dbias) {
  std::vector<double> scores;
  const int64_t value_dim = saved.dout.dim(1);
  for (int64_t i = 0; i < head.queries(); ++i) {
    const int64_t row = head.output_row(i);
    if (row < 0) {
      continue;
    }
    RowGradient gradient = {scalar(saved.lse, row),
                            scalar(saved.entropy, row),
                            scalar(saved.dlse, row),
                            scalar(saved.dentropy, row),
                            order,
                            0};
    if (gradient.lse == kHidden) {
      continue;
    }
    std::vector<double> dout(static_cast<size_t>(value_dim));
    for (int64_t e = 0; e < value_dim; ++e) {
      dout[static_cast<size_t>(e)] =
          load_element(saved.dout.data, saved.dout.dtype, row * saved.dout.stride(0) + e);
      gradient.delta += dout[static_cast<size_t>(e)] * load_element(saved.out.data, saved.out.dtype,
                                                                    row * saved.out.stride(0) + e);
    }
    if (head.has_sink()) {
      gradients.dsink += gradient(head.sink(), 0);
    }
    head.scores(i, scores);
    for (int64_t j = 0; j < head.keys(); ++j) {
      const double score = scores[static_cast<size_t>(j)];
      if (score == kHidden) {
        continue;
      }
      const double factor = head.dropout_factor(i, j);
      const double weight = std::exp(score - gradient.lse) * factor;
      double dp = 0;
      for (int64_t e = 0; e < value_dim; ++e) {
        dp += factor * dout[static_cast<size_t>(e)] * head.v(j)[e];
        gradients.dv[static_cast<size_t>(j * value_dim + e)] +=
            weight * dout[static_cast<size_t>(e)];
      }
      const double ds = gradient(score, dp);
      if (dbias) {
        const int64_t at = (dbias.dim(0) == 1 ? 0 : i) * dbias.stride(0) + j * dbias.stride(1);
        store_element(dbias.data, dbias.dtype, at, load_element(dbias.data, dbias.dtype, at) + ds);
      }
      const double dz = ds * head.softcap_slope(i, j) * head.scale();
      for (int64_t d = 0; d < head_dim; ++d) {
        gradients.dq[static_cast<size_t>(i * head_dim + d)] += dz * head.k(j)[d];
        gradients.dk[static_cast<size_t>(j * head_dim + d)] += dz * head.q(i)[d];
      }
    }
  }
}

// Rows behind `values` are padding and get 0.
void store_rows(const TensorView& rows, int64_t count, const std::vector<double>& values,
                bool accumulate) {
  const int64_t width = rows.dim(1);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t d = 0; d < width; ++d) {
      const auto at = static_cast<size_t>(i * width + d);
      const int64_t to = i * rows.stride(0) + d;
      const double before = accumulate ? load_element(rows.data, rows.dtype, to) : 0;
      store_element(rows.data, rows.dtype, to, before + (at < values.size() ? values[at] : 0));
    }
  }
}

void clear_bias(const TensorView& dbias) {
  for (int64_t b = 0; b < dbias.dim(0); ++b) {
    for (int64_t h = 0; h < dbias.dim(1); ++h) {
      store_rows(dbias.select(0, b).select(0, h), dbias.dim(2), {}, false);
    }
  }
}

}  // namespace

void attention_backward_reference(const AttentionGradients& gradients,
                                  const AttentionInputs& inputs, const AttentionSaved& saved,
                                  const AttentionOptions& options) {
  const GeometrySource source = geometry_source(inputs, options);
  const bool packed = source.cu_query != nullptr;
  const bool packed_keys = source.cu_key != nullptr;
  const int64_t head_dim = inputs.q.dim(-1);
  const int64_t value_dim = inputs.v.dim(-1);
  const int32_t group = source.heads / source.key_heads;
  if (gradients.dbias && !gradients.accumulate) {
    clear_bias(gradients.dbias);
  }
  std::vector<double> dsinks(static_cast<size_t>(source.heads), 0.0);
  for (int32_t sequence = 0; sequence < source.sequences; ++sequence) {
    const SequenceRows rows = resolve_rows(source, sequence);
    for (int32_t g = 0; g < source.key_heads; ++g) {
      HeadGradients sums;
      sums.dk.assign(static_cast<size_t>(rows.keys * head_dim), 0.0);
      sums.dv.assign(static_cast<size_t>(rows.keys * value_dim), 0.0);
      for (int32_t h = g * group; h < (g + 1) * group; ++h) {
        const ReferenceHead head(inputs, options, source, sequence, h);
        sums.dq.assign(static_cast<size_t>(head.queries() * head_dim), 0.0);
        sums.dsink = 0;
        const TensorView dbias =
            gradients.dbias ? broadcast_head(gradients.dbias, sequence, h) : TensorView{};
        backward_head(sums, head, saved_rows(saved, packed, sequence, h, rows.query_first),
                      saved.entropy_order, head_dim, dbias);
        store_rows(attention_head_rows(gradients.dq, packed, sequence, h, rows.query_first),
                   rows.query_rows, sums.dq, gradients.accumulate);
        dsinks[static_cast<size_t>(h)] += sums.dsink;
      }
      store_rows(attention_head_rows(gradients.dk, packed_keys, sequence, g, rows.key_first),
                 rows.key_rows, sums.dk, gradients.accumulate);
      store_rows(attention_head_rows(gradients.dv, packed_keys, sequence, g, rows.key_first),
                 rows.key_rows, sums.dv, gradients.accumulate);
    }
  }
  for (int32_t h = 0; gradients.dsinks && h < source.heads; ++h) {
    const int64_t at = h * gradients.dsinks.stride(0);
    const double before =
        gradients.accumulate ? load_element(gradients.dsinks.data, gradients.dsinks.dtype, at) : 0;
    store_element(gradients.dsinks.data, gradients.dsinks.dtype, at,
                  before + dsinks[static_cast<size_t>(h)]);
  }
}

}  // namespace flashloom
