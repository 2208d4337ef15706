// What the forward pass writes of a tile of queries. Included once per target.
#if defined(FLASHLOOM_OPS_ATTENTION_CPU_FORWARD_OUTPUT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHLOOM_OPS_ATTENTION_CPU_FORWARD_OUTPUT_INL_H_
#undef FLASHLOOM_OPS_ATTENTION_CPU_FORWARD_OUTPUT_INL_H_
#else
#define FLASHLOOM_OPS_ATTENTION_CPU_FORWARD_OUTPUT_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>

#include "flashloom/ops/attention/cpu/attention_forward_plan.h"
#include "flashloom/ops/attention/cpu/forward_gate-inl.h"
#include "flashloom/ops/attention/cpu/tile_load-inl.h"
#include "flashloom/ops/attention/log_sum.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {

template <int NV>
class ForwardOutput {
 public:
  static constexpr int kWidth = NV * kLanes;

  ForwardOutput(const ForwardPlan& plan, const ForwardScratch& scratch, const ForwardPlace& place,
                const SequenceRows& lengths, const ForwardGate<NV>& gate)
      : plan_(plan), scratch_(scratch), place_(place), lengths_(lengths), gate_(gate) {}

  void write_rows() {
    const bool packed = plan_.source.cu_query != nullptr;
    const int64_t end = std::min<int64_t>(place_.first + plan_.tile.rows, lengths_.query_rows);
    for (int32_t h = 0; h < plan_.heads; ++h) {
      const auto rows = [&](const TensorView& view) {
        return view ? attention_head_rows(view, packed, place_.sequence, place_.head + h,
                                          lengths_.query_first)
                    : TensorView{};
      };
      const int32_t* index = plan_.source.output_index.at(place_.sequence, place_.head + h);
      const HeadOutputs outputs = {rows(plan_.outputs->out), rows(plan_.outputs->lse),
                                   rows(plan_.outputs->entropy),
                                   index == nullptr ? nullptr : index + lengths_.query_first};
      for (int64_t p = 0; p < place_.panels; ++p) {
        write_panel(h, p, outputs);
      }
      // Padding behind the queries in use. With an index, rows that no query names were cleared
      // before.
      std::fill_n(scratch_.rows, plan_.value_padded, 0.0f);
      for (int64_t i = place_.first + place_.count; index == nullptr && i < end; ++i) {
        clear_row(outputs, i, scratch_.rows);
      }
    }
  }

 private:
  struct HeadOutputs {
    TensorView out;           // (rows, E)
    TensorView lse, entropy;  // (rows)
    const int32_t* index;     // row of out for each query, or null

    int64_t row(int64_t query) const { return index != nullptr ? index[query] : query; }
  };

  static void store_scalar(const TensorView& rows, int64_t row, float value) {
    if (rows) {
      *reinterpret_cast<float*>(mutable_row(rows, row)) = value;
    }
  }

  void clear_row(const HeadOutputs& outputs, int64_t row, const float* zeros) {
    store_row(mutable_row(outputs.out, row), outputs.out.dtype, plan_.value_dim, zeros, false);
    store_scalar(outputs.lse, row, -std::numeric_limits<float>::infinity());
    store_scalar(outputs.entropy, row, 0);
  }

  // Adds the sink to the lane's sums; returns the factor of the lane's output.
  float finish_lane(int32_t h, int64_t state, int64_t lane, float& lse, float& entropy) const {
    float sum = scratch_.sum[state * kWidth + lane];
    float largest = scratch_.largest[state * kWidth + lane];
    float moment = scratch_.moment[state * kWidth + lane];
    const float order = plan_.outputs->entropy_order;
    float factor = 1;
    float natural = 0;  // the sink, where it is the largest score
    bool of_sink = false;
    if (plan_.options->score.sinks) {
      const ConstTensorView& sinks = plan_.options->score.sinks;
      natural = sinks.as<float>()[(place_.head + h) * sinks.stride(0)];
      const float sink = natural * std::numbers::log2e_v<float>;
      of_sink = sink > largest;
      const float top = std::max(largest, sink);
      const float moved = largest - top;
      const float x = sink - top;
      factor = std::exp2(moved);
      moment = order == 1 ? factor * (moment + moved * sum) + std::exp2(x) * x
                          : std::exp2(order * moved) * moment + std::exp2(order * x);
      sum = sum * factor + std::exp2(x);
      largest = top;
    }
    lse = -std::numeric_limits<float>::infinity();
    entropy = 0;
    if (sum <= 0) {
      return 0;
    }
    constexpr float kLn2 = std::numbers::ln2_v<float>;
    lse = of_sink ? std::fma(std::log2(sum), kLn2, natural) : natural_log(largest, std::log2(sum));
    entropy = order == 1 ? std::log(sum) - moment / sum * kLn2
                         : (std::log(moment) - order * std::log(sum)) / (1 - order);
    return factor / sum;
  }

  void write_panel(int32_t h, int64_t panel, const HeadOutputs& outputs) {
    const Lanes d;
    const int64_t state = h * place_.panels + panel;
    const int64_t first = place_.first + panel * kWidth;
    const int64_t panel_rows = std::min<int64_t>(kWidth, place_.count - panel * kWidth);
    float* factors = scratch_.factor;
    std::fill_n(factors, kWidth, 0.0f);
    for (int64_t lane = 0; lane < panel_rows; ++lane) {
      float lse = 0;
      float entropy = 0;
      factors[lane] = finish_lane(h, state, lane, lse, entropy);
      const int64_t row = outputs.row(first + lane);
      if (row >= 0) {
        store_scalar(outputs.lse, row, lse);
        store_scalar(outputs.entropy, row, entropy);
      }
      if (plan_.gated && plan_.options->gate.dropped_mass) {
        gate_.store_loss(h, state, first + lane, lane, lse);
      }
    }
    float* values = scratch_.out + state * plan_.value_padded * kWidth;
    for (int64_t e = 0; e < plan_.value_padded; ++e) {
      for (int c = 0; c < kWidth; c += kLanes) {
        hn::Store(hn::Mul(hn::Load(d, values + e * kWidth + c), hn::Load(d, factors + c)), d,
                  values + e * kWidth + c);
      }
    }
    transpose(values, plan_.value_padded, kWidth, scratch_.rows);
    for (int64_t lane = 0; lane < panel_rows; ++lane) {
      const int64_t row = outputs.row(first + lane);
      if (row >= 0) {
        store_row(mutable_row(outputs.out, row), outputs.out.dtype, plan_.value_dim,
                  scratch_.rows + lane * plan_.value_padded, false);
      }
    }
  }

  const ForwardPlan& plan_;
  const ForwardScratch& scratch_;
  const ForwardPlace& place_;
  const SequenceRows& lengths_;
  const ForwardGate<NV>& gate_;
};

}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#endif
