// Joins the splits of decoding. Included once per target.
#if defined(FLASHLOOM_OPS_ATTENTION_CPU_DECODE_MERGE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHLOOM_OPS_ATTENTION_CPU_DECODE_MERGE_INL_H_
#undef FLASHLOOM_OPS_ATTENTION_CPU_DECODE_MERGE_INL_H_
#else
#define FLASHLOOM_OPS_ATTENTION_CPU_DECODE_MERGE_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numbers>

#include "flashloom/ops/attention/cpu/decode_split-inl.h"
#include "flashloom/ops/attention/log_sum.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {

/// Joins the splits of one row, in their order, and adds the sink.
inline void merge_decoded_row(const DecodePlan& plan, int32_t sequence, int32_t head,
                              int64_t query) {
  const SequenceRows lengths = resolve_rows(plan.source, sequence);
  const int64_t key_head = head / plan.group;
  const int64_t row = head % plan.group * plan.source.max_query + query;
  if (query >= lengths.query_rows) {
    return;
  }
  const auto piece = [&](int64_t split) { return plan.partial_of(sequence, key_head, split); };
  const int64_t largest_at = plan.rows * plan.value_padded + row;
  const int64_t sum_at = largest_at + plan.rows;
  float top = kNoScore;
  const ConstTensorView& sinks = plan.options->score.sinks;
  const float natural = sinks ? sinks.as<float>()[head * sinks.stride(0)] : 0;
  const float sink = sinks ? natural * std::numbers::log2e_v<float> : kNoScore;
  const bool exists = query < lengths.queries;
  for (int64_t n = 0; exists && n < plan.splits; ++n) {
    top = std::max(top, piece(n)[largest_at]);
  }
  const bool of_sink = sinks && exists && sink > top;
  top = of_sink ? sink : top;
  float sum = sinks && exists ? std::exp2(sink - top) : 0.0f;
  for (int64_t n = 0; exists && n < plan.splits; ++n) {
    sum += piece(n)[sum_at] * std::exp2(piece(n)[largest_at] - top);
  }
  const bool packed = plan.source.cu_query != nullptr;
  const TensorView out =
      attention_head_rows(plan.outputs->out, packed, sequence, head, lengths.query_first);
  const RowForm form =
      row_format(plan.inputs->v.dtype, plan.value_dim, plan.value_padded, false).form;
  // Whole pieces of values stand together, in any order.
  static_assert(kRowPiece % (2 * kLanes) == 0);
  std::array<float, kRowPiece> values;
  std::array<float, kRowPiece> ordered;
  for (int64_t e = 0; e < plan.value_dim; e += kRowPiece) {
    const int64_t count = std::min(kRowPiece, plan.value_dim - e);
    values.fill(0);
    for (int64_t n = 0; sum > 0 && n < plan.splits; ++n) {
      const float weight = std::exp2(piece(n)[largest_at] - top) / sum;
      const float* from = piece(n) + row * plan.value_padded + e;
      if (weight > 0) {  // else there may be NaN
        for (int64_t c = 0; c < count; ++c) {
          values[static_cast<size_t>(c)] += weight * from[c];
        }
      }
    }
    for (int64_t c = 0; c < count; ++c) {
      ordered[static_cast<size_t>(c)] = values[static_cast<size_t>(place_of(form, c))];
    }
    store_row(mutable_row(out, query) + e * static_cast<int64_t>(dtype_bytes(out.dtype)), out.dtype,
              count, ordered.data(), false);
  }
  if (plan.outputs->lse) {
    const TensorView lse =
        attention_head_rows(plan.outputs->lse, packed, sequence, head, lengths.query_first);
    *reinterpret_cast<float*>(mutable_row(lse, query)) =
        !(sum > 0) ? -std::numeric_limits<float>::infinity()
        : of_sink  ? std::fma(std::log2(sum), std::numbers::ln2_v<float>, natural)
                   : natural_log(top, std::log2(sum));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#endif
