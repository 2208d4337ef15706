// What the backward pass does row by row: the sums that it starts from, and dq at its end. Included
// once per target.
#if defined(FLASHLOOM_OPS_ATTENTION_CPU_BACKWARD_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHLOOM_OPS_ATTENTION_CPU_BACKWARD_ROWS_INL_H_
#undef FLASHLOOM_OPS_ATTENTION_CPU_BACKWARD_ROWS_INL_H_
#else
#define FLASHLOOM_OPS_ATTENTION_CPU_BACKWARD_ROWS_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numbers>

#include "flashloom/ops/attention/cpu/attention_backward_plan.h"
#include "flashloom/ops/attention/cpu/tile_load-inl.h"
#include "flashloom/ops/attention/cpu/tile_math-inl.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Rows of out and what goes with it, found through the output index if there is one.
inline CpuRows output_rows(const BackwardPlan& plan, CpuRows rows, int32_t sequence, int32_t head,
                           const SequenceRows& lengths) {
  const int32_t* index = plan.source.output_index.at(sequence, head);
  rows.index = index == nullptr ? nullptr : index + lengths.query_first;
  return rows;
}

// log_sums and deltas of rows [first, last) of one (sequence, head).
inline void prepare_rows(const BackwardPlan& plan, int32_t sequence, int32_t head, int64_t first,
                         int64_t last) {
  const SequenceRows rows = resolve_rows(plan.source, sequence);
  const HeadGeometry geometry = resolve_head(plan.source, rows, sequence, head);
  const bool packed = plan.source.cu_query != nullptr;
  const auto of = [&](const ConstTensorView& view) {
    return view ? output_rows(plan, cpu_rows(view, packed, sequence, head, rows.query_first),
                              sequence, head, rows)
                : CpuRows{};
  };
  const CpuRows out = of(plan.saved->out);
  const CpuRows dout = of(plan.saved->dout);
  const CpuRows lse = of(plan.saved->lse);
  const CpuRows dlse = of(plan.saved->dlse);
  const CpuRows entropy = plan.with_entropy ? of(plan.saved->entropy) : CpuRows{};
  const CpuRows dentropy = plan.with_entropy ? of(plan.saved->dentropy) : CpuRows{};
  const int64_t to = head * plan.total_rows + plan.first_row(sequence, rows);
  last = std::min<int64_t>(last, geometry.outer.count);
  HWY_ALIGN float a[kRowPiece];
  HWY_ALIGN float b[kRowPiece];
  const Lanes d;
  const auto scalar = [](const CpuRows& view, int64_t i) {
    return view.data == nullptr ? 0.0f : *reinterpret_cast<const float*>(view.row(i));
  };
  for (int64_t i = first; i < last; ++i) {
    const float log_sum = lse.row(i) == nullptr ? -kInfinity : scalar(lse, i);
    if (log_sum == -kInfinity) {
      plan.log_sums[to + i] = kInfinity;
      plan.deltas[to + i] = 0;
      if (plan.with_entropy) {
        plan.entropies[to + i] = plan.dentropies[to + i] = 0;
      }
      continue;
    }
    auto sum = hn::Zero(d);
    for (int64_t e = 0; e < plan.value_dim; e += kRowPiece) {
      const int64_t count = std::min(kRowPiece, plan.value_dim - e);
      const int64_t padded = padded_depth(count);
      load_row(out.row(i) + e * out.element_bytes(), out.dtype, count, padded, a);
      load_row(dout.row(i) + e * dout.element_bytes(), dout.dtype, count, padded, b);
      for (int64_t c = 0; c < padded; c += kLanes) {
        sum = hn::MulAdd(hn::Load(d, a + c), hn::Load(d, b + c), sum);
      }
    }
    plan.log_sums[to + i] = log_sum;
    plan.deltas[to + i] = hn::GetLane(hn::SumOfLanes(d, sum)) - scalar(dlse, i);
    if (plan.with_entropy) {
      plan.entropies[to + i] = scalar(entropy, i);
      plan.dentropies[to + i] = scalar(dentropy, i);
    }
  }
}

// dq of rows [first, last): the chunks' partial sums, in order.
inline void sum_chunks(const BackwardPlan& plan, int32_t sequence, int32_t head, int64_t first,
                       int64_t last) {
  const Lanes d;
  const SequenceRows rows = resolve_rows(plan.source, sequence);
  const HeadGeometry geometry = resolve_head(plan.source, rows, sequence, head);
  const TensorView dq = attention_head_rows(plan.gradients->dq, plan.source.cu_query != nullptr,
                                            sequence, head, rows.query_first);
  const int64_t dim = plan.head_padded;
  const int64_t stride = plan.source.heads * plan.total_rows * dim;
  const float* from =
      plan.partial + (head * plan.total_rows + plan.first_row(sequence, rows)) * dim;
  const auto scale = hn::Set(d, plan.score.scale);
  HWY_ALIGN float piece[kRowPiece];
  for (int64_t i = first; i < std::min<int64_t>(last, rows.query_rows); ++i) {
    for (int64_t e = 0; e < plan.head_dim; e += kRowPiece) {
      const int64_t count = std::min(kRowPiece, plan.head_dim - e);
      for (int64_t c = 0; c < count; c += kLanes) {
        auto sum = hn::Zero(d);
        for (int64_t n = 0; i < geometry.outer.count && n < plan.chunks; ++n) {
          sum = hn::Add(sum, hn::LoadU(d, from + n * stride + i * dim + e + c));
        }
        hn::Store(hn::Mul(sum, scale), d, piece + c);
      }
      store_row(mutable_row(dq, i) + e * static_cast<int64_t>(dtype_bytes(dq.dtype)), dq.dtype,
                count, piece, plan.gradients->accumulate);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#endif
