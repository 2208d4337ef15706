#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/cpu/attention_cpu.h"
#include "flashloom/ops/attention/cpu/attention_decode.h"
#include "flashloom/ops/attention/cpu/attention_forward_plan.h"
#include "flashloom/ops/attention/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "flashloom/ops/attention/cpu/attention_forward_cpu.cc"
// clang-format off: the order matters
#include "hwy/foreach_target.h"
// clang-format on
#include "flashloom/ops/attention/cpu/tile_mask-inl.h"
#include "flashloom/ops/attention/cpu/tile_math-inl.h"
#include "flashloom/ops/attention/cpu/tile_score-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {
namespace {

constexpr int kForwardVectors = 3;

// Largest score of a row before it has seen a key: finite, so that differences are never NaN.
constexpr float kNothing = -1e30f;

// One task: a tile of queries of the heads that share keys.
template <int NV>
class ForwardTile {
 public:
  static constexpr int kWidth = NV * kLanes;

  ForwardTile(const ForwardPlan& plan, int32_t sequence, int32_t head, int64_t query_tile,
              float* memory)
      : plan_(plan),
        scratch_(plan, memory),
        sequence_(sequence),
        head_(head),
        rows_(resolve_rows(plan.source, sequence)),
        geometry_(resolve_head(plan.source, rows_, sequence, head)),
        query_tile_(query_tile),
        first_(query_tile * plan.tile.rows),
        count_(std::clamp<int64_t>(geometry_.outer.count - first_, 0, plan.tile.rows)),
        panels_((count_ + kWidth - 1) / kWidth) {}

  void run() {
    if (first_ >= rows_.query_rows) {
      return;
    }
    if (count_ > 0) {
      if (plan_.gated) {
        start_gate();
      }
      load_queries();
      walk_keys();
    }
    write_rows();
  }

 private:
  int64_t panel_rows(int64_t panel) const {
    return std::min<int64_t>(kWidth, count_ - panel * kWidth);
  }

  void load_queries() {
    const int64_t dim = plan_.score_padded;
    for (int64_t h = 0; h < plan_.heads; ++h) {
      const CpuRows rows = cpu_rows(plan_.inputs->q, plan_.source.cu_query != nullptr, sequence_,
                                    head_ + h, rows_.query_first);
      const CpuRows queries = plan_.pairs ? as_pairs(rows) : rows;
      for (int64_t p = 0; p < panels_; ++p) {
        const int64_t state = h * panels_ + p;
        load_panel(queries, first_ + p * kWidth, panel_rows(p), kWidth, plan_.score_depth, dim,
                   plan_.pairs ? 1.0f : plan_.score.panel_scale, scratch_.rows,
                   scratch_.queries + state * dim * kWidth);
        std::fill_n(scratch_.out + state * plan_.value_padded * kWidth, plan_.value_padded * kWidth,
                    0.0f);
        std::fill_n(scratch_.largest + state * kWidth, kWidth, kNothing);
        std::fill_n(scratch_.sum + state * kWidth, kWidth, 0.0f);
        std::fill_n(scratch_.moment + state * kWidth, kWidth, 0.0f);
      }
    }
  }

  void walk_keys() {
    const int64_t group = plan_.source.heads / plan_.source.key_heads;
    const CpuRows key_rows = cpu_key_rows(plan_.inputs->k, plan_.options->sequences, sequence_,
                                          head_ / group, rows_.key_first);
    const CpuRows keys = plan_.pairs ? as_pairs(key_rows) : key_rows;
    const CpuRows values = cpu_key_rows(plan_.inputs->v, plan_.options->sequences, sequence_,
                                        head_ / group, rows_.key_first);
    const int64_t tile_keys = padded_rows(plan_.tile.keys);
    TileIterator runs(geometry_, query_tile_, plan_.tile);
    for (TileRun run = {}; runs.next(run);) {
      for (int64_t tile = run.first; tile < run.first + run.count; ++tile) {
        const int64_t first = tile * plan_.tile.keys;
        const int64_t count = std::min<int64_t>(plan_.tile.keys, geometry_.inner.count - first);
        load_grouped(keys, first, count, tile_keys, plan_.score_depth, plan_.score_padded,
                     scratch_.rows, scratch_.keys);
        bool loaded = false;
        const auto load_values = [&] {
          if (!loaded) {
            load_grouped(values, first, count, tile_keys, plan_.value_dim, plan_.value_padded,
                         scratch_.rows, scratch_.values);
            loaded = true;
          }
        };
        if (plan_.gated) {  // values of skipped tiles are never read
          for (int64_t h = 0; h < plan_.heads; ++h) {
            attend_gated(h, run, tile, first, count, load_values);
          }
          continue;
        }
        load_values();
        for (int64_t p = 0; p < panels_; ++p) {
          const int64_t outer = first_ + p * kWidth;
          const PanelRange range =
              panel_range(geometry_, run.flags, outer, panel_rows(p), first, count);
          if (range.first < range.last) {
            for (int64_t h = 0; h < plan_.heads; ++h) {
              const PanelPlace place = {outer, panel_rows(p), first, count};
              score(h, p, run, range, place, scratch_.scores);
              absorb(h, p, range, place, scratch_.scores);
            }
          }
        }
      }
    }
  }

  // Scores of one panel and one tile of keys.
  void score(int64_t h, int64_t panel, const TileRun& run, const PanelRange& range,
             const PanelPlace& place, float* scores) {
    const int64_t state = h * panels_ + panel;
    score_rows<NV>(plan_.pairs, scratch_.keys, padded_rows(plan_.tile.keys),
                   scratch_.queries + state * plan_.score_padded * kWidth, plan_.score_padded,
                   plan_.score.panel_scale, range.first, range.last, scores, kWidth);
    if (!plan_.score.plain) {
      adjust_scores<NV>(plan_.score, head_score(h), geometry_, range, place, scores, nullptr);
    }
    if (range.masked) {
      mask_panel<NV>(geometry_, run.flags, run.partial, range, place.outer_first, place.outer_count,
                     place.inner_first, place.inner_count, scores, kWidth);
    }
  }

  // Online softmax and value product of scores.
  void absorb(int64_t h, int64_t panel, const PanelRange& range, const PanelPlace& place,
              float* scores) {
    const int64_t state = h * panels_ + panel;
    softmax(state, range, scores);
    if (plan_.score.dropout > 0) {
      drop(h, range, place, scores);
    }
    accumulate_panel<NV>(scratch_.out + state * plan_.value_padded * kWidth, scratch_.factor,
                         scratch_.values, padded_rows(plan_.tile.keys),
                         plan_.value_padded / kDepthGroup, scores, kWidth, range.first, range.last);
  }

  // One head, one tile of keys behind a gate: the scores of all panels, then what is left of them.
  template <class LoadValues>
  void attend_gated(int64_t h, const TileRun& run, int64_t tile, int64_t first, int64_t count,
                    LoadValues load_values) {
    const auto place_of = [&](int64_t p) {
      return PanelPlace{first_ + p * kWidth, panel_rows(p), first, count};
    };
    const auto range_of = [&](int64_t p) {
      return panel_range(geometry_, run.flags, first_ + p * kWidth, panel_rows(p), first, count);
    };
    const auto scores_of = [&](int64_t p) {
      return scratch_.scores + p * padded_rows(plan_.tile.keys) * kWidth;
    };
    bool any = false;
    bool skip = (run.flags & kRunGated) != 0;
    for (int64_t p = 0; p < panels_; ++p) {
      const PanelRange range = range_of(p);
      if (range.first < range.last) {
        score(h, p, run, range, place_of(p), scores_of(p));
        const auto [some, low] = survey(h, p, range, scores_of(p));
        any = any || some;
        skip = skip && low;
      }
    }
    if (skip) {
      for (int64_t p = 0; p < panels_; ++p) {
        note_loss(h, p);
      }
      return;
    }
    if (any) {
      mark_kept(h, tile);
      load_values();
    }
    for (int64_t p = 0; any && p < panels_; ++p) {
      const PanelRange range = range_of(p);
      if (range.first < range.last) {
        absorb(h, p, range, place_of(p), scores_of(p));
      }
    }
  }

  struct Survey {
    bool any;  // pair is visible
    bool low;  // enough for the gate, all rows, and no pair hidden by a bias
  };

  Survey survey(int64_t h, int64_t panel, const PanelRange& range, const float* scores) {
    const Lanes d;
    float* tops = scratch_.tops + panel * kWidth;
    const auto hidden = hn::Set(d, -std::numeric_limits<float>::infinity());
    auto least = hn::Set(d, std::numeric_limits<float>::infinity());
    for (int c = 0; c < kWidth; c += kLanes) {
      auto top = hidden;
      for (int64_t k = range.first; k < range.last; ++k) {
        top = hn::Max(top, hn::Load(d, scores + k * kWidth + c));
        least = hn::Min(least, hn::Load(d, scores + k * kWidth + c));
      }
      hn::Store(top, d, tops + c);
    }
    const AttentionGate& gate = plan_.options->gate;
    const ConstTensorView row = gate.threshold.select(0, head_ + h);
    const float threshold = row.as<float>()[std::min(query_tile_, row.dim(0) - 1) * row.stride(0)] *
                            std::numbers::log2e_v<float>;
    const float* largest = scratch_.largest + (h * panels_ + panel) * kWidth;
    Survey result = {false, hn::AllTrue(d, hn::Gt(least, hidden))};
    for (int64_t lane = 0; lane < panel_rows(panel); ++lane) {
      result.any = result.any || tops[lane] > -std::numeric_limits<float>::infinity();
      const bool low = gate.kind == AttentionGate::Kind::absolute
                           ? tops[lane] < threshold
                           : largest[lane] - tops[lane] > threshold;
      result.low = result.low && low;
    }
    return result;
  }

  // A skipped tile takes at most (keys) exp(its largest score) from each row.
  void note_loss(int64_t h, int64_t panel) {
    const int64_t at = (h * panels_ + panel) * kWidth;
    for (int64_t lane = 0; lane < kWidth; ++lane) {
      const float top = scratch_.tops[panel * kWidth + lane];
      float& largest = scratch_.lost_largest[at + lane];
      float& sum = scratch_.lost_sum[at + lane];
      const float next = std::max(largest, top);
      sum = sum * std::exp2(largest - next) +
            static_cast<float>(plan_.tile.keys) * std::exp2(top - next);
      largest = next;
    }
  }

  // Tasks own whole rows of the bitmap.
  TensorView kept_words(int64_t h) const {
    return plan_.options->gate.kept.select(0, sequence_)
        .select(0, head_ + h)
        .select(0, query_tile_);
  }

  void mark_kept(int64_t h, int64_t tile) {
    if (plan_.options->gate.kept) {
      const TensorView words = kept_words(h);
      int32_t& word = words.as<int32_t>()[tile / 32 * words.stride(0)];
      word = static_cast<int32_t>(static_cast<uint32_t>(word) | uint32_t{1} << (tile % 32));
    }
  }

  void start_gate() {
    const int64_t lanes = plan_.heads * panels_ * kWidth;
    std::fill_n(scratch_.lost_largest, lanes, kNothing);
    std::fill_n(scratch_.lost_sum, lanes, 0.0f);
    for (int64_t h = 0; plan_.options->gate.kept && h < plan_.heads; ++h) {
      const TensorView words = kept_words(h);
      for (int64_t w = 0; w < words.dim(0); ++w) {
        words.as<int32_t>()[w * words.stride(0)] = 0;
      }
    }
  }

  CpuHeadScore head_score(int64_t h) const {
    return CpuHeadScore(plan_.score, sequence_, head_ + static_cast<int32_t>(h));
  }

  void drop(int64_t h, const PanelRange& range, const PanelPlace& place, float* scores) {
    const Lanes d;
    dropout_factors<NV>(plan_.score, head_score(h), geometry_, range, place, scratch_.dropout);
    for (int64_t i = range.first * kWidth; i < range.last * kWidth; i += kLanes) {
      hn::Store(hn::Mul(hn::Load(d, scores + i), hn::Load(d, scratch_.dropout + i)), d, scores + i);
    }
  }

  // Replaces scores by exp2(score - largest), updates largest and sum, leaves the factor by which
  // what was summed before shrinks.
  void softmax(int64_t state, const PanelRange& range, float* scores) {
    const Lanes d;
    float* largest = scratch_.largest + state * kWidth;
    float* sum = scratch_.sum + state * kWidth;
    Vector top[NV];
    Vector total[NV];
    for (int c = 0; c < NV; ++c) {
      top[c] = hn::Load(d, largest + c * kLanes);
    }
    for (int64_t k = range.first; k < range.last; ++k) {
      const float* row = scores + k * kWidth;
      for (int c = 0; c < NV; ++c) {
        top[c] = hn::Max(top[c], hn::Load(d, row + c * kLanes));
      }
    }
    if (plan_.outputs->entropy) {
      update_moment(state, range, scores, top);
    }
    for (int c = 0; c < NV; ++c) {
      const auto factor = exp2_f32(d, hn::Sub(hn::Load(d, largest + c * kLanes), top[c]));
      hn::Store(factor, d, scratch_.factor + c * kLanes);
      hn::Store(top[c], d, largest + c * kLanes);
      total[c] = hn::Mul(factor, hn::Load(d, sum + c * kLanes));
    }
    for (int64_t k = range.first; k < range.last; ++k) {
      float* row = scores + k * kWidth;
      for (int c = 0; c < NV; ++c) {
        const auto p = exp2_f32(d, hn::Sub(hn::Load(d, row + c * kLanes), top[c]));
        hn::Store(p, d, row + c * kLanes);
        total[c] = hn::Add(total[c], p);
      }
    }
    for (int c = 0; c < NV; ++c) {
      hn::Store(total[c], d, sum + c * kLanes);
    }
  }

  // Shannon: sum of 2^x x, x = score - largest (centred, so that nothing cancels); Renyi of order
  // a: sum of 2^(a x). Runs before largest and sum are updated to `top`.
  void update_moment(int64_t state, const PanelRange& range, const float* scores,
                     const Vector* top) {
    const Lanes d;
    const bool shannon = plan_.outputs->entropy_order == 1;
    const auto order = hn::Set(d, plan_.outputs->entropy_order);
    for (int c = 0; c < NV; ++c) {
      float* moments = scratch_.moment + state * kWidth + c * kLanes;
      const auto moved =
          hn::Sub(hn::Load(d, scratch_.largest + state * kWidth + c * kLanes), top[c]);
      const auto sum = hn::Load(d, scratch_.sum + state * kWidth + c * kLanes);
      auto moment = hn::Load(d, moments);
      moment = shannon ? hn::Mul(exp2_f32(d, moved), hn::MulAdd(moved, sum, moment))
                       : hn::Mul(exp2_f32(d, hn::Mul(order, moved)), moment);
      for (int64_t k = range.first; k < range.last; ++k) {
        const auto x = hn::Sub(hn::Load(d, scores + k * kWidth + c * kLanes), top[c]);
        const auto p = exp2_f32(d, shannon ? x : hn::Mul(order, x));
        const auto term = shannon ? hn::Mul(p, x) : p;
        moment = hn::Add(moment, hn::IfThenElseZero(hn::Gt(p, hn::Zero(d)), term));
      }
      hn::Store(moment, d, moments);
    }
  }

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

  void write_rows() {
    const bool packed = plan_.source.cu_query != nullptr;
    const int64_t end = std::min<int64_t>(first_ + plan_.tile.rows, rows_.query_rows);
    for (int32_t h = 0; h < plan_.heads; ++h) {
      const auto rows = [&](const TensorView& view) {
        return view ? attention_head_rows(view, packed, sequence_, head_ + h, rows_.query_first)
                    : TensorView{};
      };
      const int32_t* index = plan_.source.output_index.at(sequence_, head_ + h);
      const HeadOutputs outputs = {rows(plan_.outputs->out), rows(plan_.outputs->lse),
                                   rows(plan_.outputs->entropy),
                                   index == nullptr ? nullptr : index + rows_.query_first};
      for (int64_t p = 0; p < panels_; ++p) {
        write_panel(h, p, outputs);
      }
      // Padding behind the queries in use. With an index, rows that no query names were cleared
      // before.
      std::fill_n(scratch_.rows, plan_.value_padded, 0.0f);
      for (int64_t i = first_ + count_; index == nullptr && i < end; ++i) {
        clear_row(outputs, i, scratch_.rows);
      }
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
    if (plan_.options->score.sinks) {
      const ConstTensorView& sinks = plan_.options->score.sinks;
      const float sink =
          sinks.as<float>()[(head_ + h) * sinks.stride(0)] * std::numbers::log2e_v<float>;
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
    lse = (largest + std::log2(sum)) * kLn2;
    entropy = order == 1 ? std::log(sum) - moment / sum * kLn2
                         : (std::log(moment) - order * std::log(sum)) / (1 - order);
    return factor / sum;
  }

  // Share of the row's whole mass that skipped tiles had at most.
  void store_loss(int32_t h, int64_t state, int64_t query, int64_t lane, float lse) const {
    const float sum = scratch_.lost_sum[state * kWidth + lane];
    const float log_lost = scratch_.lost_largest[state * kWidth + lane] + std::log2(sum);
    const float kept = lse * std::numbers::log2e_v<float>;
    const TensorView rows =
        plan_.options->gate.dropped_mass.select(0, sequence_).select(0, head_ + h);
    rows.as<float>()[query * rows.stride(0)] =
        sum > 0 ? 1 / (1 + std::exp2(kept - log_lost)) : 0.0f;
  }

  void write_panel(int32_t h, int64_t panel, const HeadOutputs& outputs) {
    const Lanes d;
    const int64_t state = h * panels_ + panel;
    const int64_t first = first_ + panel * kWidth;
    float* factors = scratch_.factor;
    std::fill_n(factors, kWidth, 0.0f);
    for (int64_t lane = 0; lane < panel_rows(panel); ++lane) {
      float lse = 0;
      float entropy = 0;
      factors[lane] = finish_lane(h, state, lane, lse, entropy);
      const int64_t row = outputs.row(first + lane);
      if (row >= 0) {
        store_scalar(outputs.lse, row, lse);
        store_scalar(outputs.entropy, row, entropy);
      }
      if (plan_.gated && plan_.options->gate.dropped_mass) {
        store_loss(h, state, first + lane, lane, lse);
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
    for (int64_t lane = 0; lane < panel_rows(panel); ++lane) {
      const int64_t row = outputs.row(first + lane);
      if (row >= 0) {
        store_row(mutable_row(outputs.out, row), outputs.out.dtype, plan_.value_dim,
                  scratch_.rows + lane * plan_.value_padded, false);
      }
    }
  }

  const ForwardPlan& plan_;
  ForwardScratch scratch_;
  int32_t sequence_;
  int32_t head_;
  SequenceRows rows_;
  HeadGeometry geometry_;
  int64_t query_tile_;
  int64_t first_;  // query
  int64_t count_;  // queries that exist
  int64_t panels_;
};

void forward_task(const ForwardPlan& plan, int32_t sequence, int32_t head, int64_t query_tile,
                  float* memory) {
  ForwardTile<kForwardVectors>(plan, sequence, head, query_tile, memory).run();
}

ForwardTarget forward_target() {
  return {kForwardVectors * kLanes, bf16_pairs_available()};
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashloom {

HWY_EXPORT(forward_task);
HWY_EXPORT(forward_target);

namespace {

// Whether all heads of a group see the same pairs, so that they can share tiles of keys.
bool heads_share_pairs(const AttentionOptions& options) {
  const AttentionPositions& positions = options.positions;
  const bool own_positions = positions.query || positions.key || positions.query_count ||
                             positions.key_count || positions.output_index ||
                             positions.query_bucket_offsets;
  const bool own_blocks = options.blocks.row_offsets && options.blocks.row_offsets.dim(1) > 1;
  return !own_positions && !own_blocks;
}

// Rows that no query of an output index names.
void clear_outputs(const AttentionOutputs& outputs) {
  const bool packed = outputs.out.rank == 3;
  const int64_t heads = outputs.out.dim(-3);
  const int64_t sequences = packed ? 1 : outputs.out.dim(0);
  parallel_for(sequences * heads, [&](int64_t task) {
    const auto rows = [&](const TensorView& view) {
      return attention_head_rows(view, packed, task / heads, task % heads, 0);
    };
    const TensorView out = rows(outputs.out);
    for (int64_t i = 0; i < out.dim(0); ++i) {
      std::fill_n(mutable_row(out, i), out.dim(1) * static_cast<int64_t>(dtype_bytes(out.dtype)),
                  std::byte{0});
      if (outputs.lse) {
        *reinterpret_cast<float*>(mutable_row(rows(outputs.lse), i)) =
            -std::numeric_limits<float>::infinity();
      }
      if (outputs.entropy) {
        *reinterpret_cast<float*>(mutable_row(rows(outputs.entropy), i)) = 0;
      }
    }
  });
}

}  // namespace

ForwardPlan forward_plan(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                         const AttentionOptions& options, const ForwardTarget& target) {
  ForwardPlan plan = {};
  const int64_t panel_width = target.panel_width;
  plan.outputs = &outputs;
  plan.inputs = &inputs;
  plan.options = &options;
  plan.source = geometry_source(inputs, options);
  plan.head_dim = inputs.q.dim(-1);
  plan.value_dim = inputs.v.dim(-1);
  plan.head_padded = padded_depth(plan.head_dim);
  plan.value_padded = padded_depth(plan.value_dim);
  plan.pairs = target.pairs && stored_as_pairs(inputs.q, inputs.k);
  plan.score_depth = plan.pairs ? plan.head_dim / 2 : plan.head_dim;
  plan.score_padded = padded_depth(plan.score_depth);
  plan.panel_width = panel_width;
  const int64_t group = plan.source.key_heads > 0 ? plan.source.heads / plan.source.key_heads : 1;
  plan.heads = heads_share_pairs(options) ? group : 1;
  const int64_t panel_bytes =
      plan.heads * (plan.score_padded + plan.value_padded) * panel_width * 4;
  const int64_t panels = std::clamp<int64_t>(kForwardPanelBytes / panel_bytes, 1, kForwardPanels);
  plan.tile = {static_cast<int32_t>(panels * panel_width), static_cast<int32_t>(kForwardKeys)};
  if (plan.source.block_rows > 0) {
    plan.tile = {tile_side(plan.source.block_rows, kForwardBlockRows),
                 tile_side(plan.source.block_keys, kForwardKeys)};
  }
  plan.gated = options.gate.kind != AttentionGate::Kind::none;
  if (plan.gated) {
    plan.tile = {static_cast<int32_t>(options.gate.rows), static_cast<int32_t>(options.gate.keys)};
  }
  plan.score = CpuScore(options, plan.head_dim);
  return plan;
}

ForwardScratch::ForwardScratch(const ForwardPlan& plan, float* memory) {
  FloatArena arena(memory);
  const int64_t tile_keys = padded_rows(plan.tile.keys);
  const int64_t width = plan.panel_width;
  const int64_t panels = plan.heads * tile_count(plan.tile.rows, width);
  keys = arena.take(plan.score_padded * tile_keys);
  values = arena.take(plan.value_padded * tile_keys);
  const int64_t head_panels = plan.gated ? tile_count(plan.tile.rows, width) : 1;
  scores = arena.take(head_panels * tile_keys * width);
  tops = arena.take(plan.gated ? head_panels * width : 0);
  lost_largest = arena.take(plan.gated ? panels * width : 0);
  lost_sum = arena.take(plan.gated ? panels * width : 0);
  queries = arena.take(panels * plan.score_padded * width);
  out = arena.take(panels * plan.value_padded * width);
  largest = arena.take(panels * width);
  sum = arena.take(panels * width);
  moment = arena.take(panels * width);
  dropout = arena.take(plan.score.dropout > 0 ? tile_keys * width : 0);
  factor = arena.take(width);
  rows = arena.take(width * std::max(plan.head_padded, plan.value_padded));
  floats = arena.used();
}

TileShape attention_forward_cpu_tile(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                                     const AttentionOptions& options) {
  const ForwardPlan plan =
      forward_plan(outputs, inputs, options, HWY_DYNAMIC_DISPATCH(forward_target)());
  if (decode_applies(outputs, inputs, options)) {
    return {std::max(plan.source.max_query, 1), static_cast<int32_t>(kDecodeBlock)};
  }
  return plan.tile;
}

int64_t attention_forward_cpu_bytes(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                                    const AttentionOptions& options) {
  if (decode_applies(outputs, inputs, options)) {
    return attention_decode_cpu_bytes(outputs, inputs, options);
  }
  const ForwardPlan plan =
      forward_plan(outputs, inputs, options, HWY_DYNAMIC_DISPATCH(forward_target)());
  return thread_count() * ForwardScratch(plan, nullptr).floats * 4;
}

void attention_forward_cpu(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                           std::span<std::byte> workspace, const AttentionOptions& options) {
  if (decode_applies(outputs, inputs, options)) {
    attention_decode_cpu(outputs, inputs, workspace, options);
    return;
  }
  const ForwardPlan plan =
      forward_plan(outputs, inputs, options, HWY_DYNAMIC_DISPATCH(forward_target)());
  if (plan.source.heads == 0) {
    return;
  }
  if (options.positions.output_index) {
    clear_outputs(outputs);
  }
  const int64_t floats = ForwardScratch(plan, nullptr).floats;
  auto* memory = reinterpret_cast<float*>(workspace.data());
  const int64_t tiles = tile_count(plan.source.max_query, plan.tile.rows);
  const int64_t head_tasks = plan.source.heads / plan.heads;
  // Last tiles first: under a causal mask they are the longest.
  parallel_for_workers(tiles * plan.source.sequences * head_tasks, [&](int64_t task, int worker) {
    const int64_t tile = tiles - 1 - task / (plan.source.sequences * head_tasks);
    const int64_t rest = task % (plan.source.sequences * head_tasks);
    HWY_DYNAMIC_DISPATCH(forward_task)
    (plan, static_cast<int32_t>(rest / head_tasks),
     static_cast<int32_t>(rest % head_tasks * plan.heads), tile, memory + worker * floats);
  });
}

}  // namespace flashloom
#endif  // HWY_ONCE
