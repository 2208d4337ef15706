// One task of the forward pass: a tile of queries walks its keys. Included once per target.
#if defined(FLASHLOOM_OPS_ATTENTION_CPU_FORWARD_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHLOOM_OPS_ATTENTION_CPU_FORWARD_TILE_INL_H_
#undef FLASHLOOM_OPS_ATTENTION_CPU_FORWARD_TILE_INL_H_
#else
#define FLASHLOOM_OPS_ATTENTION_CPU_FORWARD_TILE_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <limits>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/cpu/attention_forward_plan.h"
#include "flashloom/ops/attention/cpu/forward_gate-inl.h"
#include "flashloom/ops/attention/cpu/forward_output-inl.h"
#include "flashloom/ops/attention/cpu/tile_load-inl.h"
#include "flashloom/ops/attention/cpu/tile_mask-inl.h"
#include "flashloom/ops/attention/cpu/tile_math-inl.h"
#include "flashloom/ops/attention/cpu/tile_pairs-inl.h"
#include "flashloom/ops/attention/cpu/tile_score-inl.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {

// One task: a tile of queries of the heads that share keys.
template <int NV>
class ForwardTile {
 public:
  static constexpr int kWidth = NV * kLanes;

  ForwardTile(const ForwardPlan& plan, int32_t sequence, int32_t head, int64_t query_tile,
              float* memory)
      : plan_(plan),
        scratch_(plan, memory),
        lengths_(resolve_rows(plan.source, sequence)),
        geometry_(resolve_head(plan.source, lengths_, sequence, head)),
        place_(place_of(plan, geometry_, sequence, head, query_tile)),
        gate_(plan, scratch_, place_),
        output_(plan, scratch_, place_, lengths_, gate_) {}

  void run() {
    if (place_.first >= lengths_.query_rows) {
      return;
    }
    if (place_.count > 0) {
      if (plan_.gated) {
        gate_.start();
      }
      load_queries();
      walk_keys();
    }
    output_.write_rows();
  }

 private:
  static ForwardPlace place_of(const ForwardPlan& plan, const HeadGeometry& geometry,
                               int32_t sequence, int32_t head, int64_t query_tile) {
    const int64_t first = query_tile * plan.tile.rows;
    const int64_t count = std::clamp<int64_t>(geometry.outer.count - first, 0, plan.tile.rows);
    return {sequence, head, query_tile, first, count, tile_count(count, int64_t{kWidth})};
  }

  int64_t panel_rows(int64_t panel) const {
    return std::min<int64_t>(kWidth, place_.count - panel * kWidth);
  }

  void load_queries() {
    const int64_t dim = plan_.score_padded;
    for (int64_t h = 0; h < plan_.heads; ++h) {
      const CpuRows rows = cpu_rows(plan_.inputs->q, plan_.source.cu_query != nullptr,
                                    place_.sequence, place_.head + h, lengths_.query_first);
      const CpuRows queries = plan_.pairs ? as_pairs(rows) : rows;
      for (int64_t p = 0; p < place_.panels; ++p) {
        const int64_t state = h * place_.panels + p;
        load_panel(queries, place_.first + p * kWidth, panel_rows(p), kWidth, plan_.score_depth,
                   dim, plan_.pairs ? 1.0f : plan_.score.panel_scale, scratch_.rows,
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
    const CpuRows key_rows = cpu_key_rows(plan_.inputs->k, plan_.options->sequences,
                                          place_.sequence, place_.head / group, lengths_.key_first);
    const CpuRows keys = plan_.pairs ? as_pairs(key_rows) : key_rows;
    const CpuRows values = cpu_key_rows(plan_.inputs->v, plan_.options->sequences, place_.sequence,
                                        place_.head / group, lengths_.key_first);
    const int64_t tile_keys = padded_rows(plan_.tile.keys);
    TileIterator runs(geometry_, place_.query_tile, plan_.tile);
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
        for (int64_t p = 0; p < place_.panels; ++p) {
          const int64_t outer = place_.first + p * kWidth;
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
    const int64_t state = h * place_.panels + panel;
    const float* queries = scratch_.queries + state * plan_.score_padded * kWidth;
    for_seen_parts<NV>(range, [&](int64_t row, int64_t end, int vector, auto vectors) HWY_ATTR {
      constexpr int kVectors = decltype(vectors)::value;
      const int lane = vector * kLanes;
      score_rows<kVectors, NV>(plan_.pairs, scratch_.keys, padded_rows(plan_.tile.keys),
                               queries + lane, plan_.score_padded, plan_.score.panel_scale, row,
                               end, scores + lane, kWidth);
    });
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
    const int64_t state = h * place_.panels + panel;
    softmax(state, range, scores);
    if (plan_.score.dropout > 0) {
      drop(h, range, place, scores);
    }
    float* out = scratch_.out + state * plan_.value_padded * kWidth;
    for_seen_parts<NV>(range, [&](int64_t row, int64_t end, int vector, auto vectors) HWY_ATTR {
      constexpr int kVectors = decltype(vectors)::value;
      const int lane = vector * kLanes;
      accumulate_panel<kVectors, NV>(out + lane, scratch_.factor + lane, scratch_.values,
                                     padded_rows(plan_.tile.keys), plan_.value_padded / kDepthGroup,
                                     scores + lane, kWidth, row, end);
      // The first part of a vector scales what was there; the factor of one that sees nothing is 1.
      std::fill_n(scratch_.factor + lane, kVectors * kLanes, 1.0f);
    });
  }

  // One head, one tile of keys behind a gate: the scores of all panels, then what is left of them.
  template <class LoadValues>
  void attend_gated(int64_t h, const TileRun& run, int64_t tile, int64_t first, int64_t count,
                    LoadValues load_values) {
    const auto place_of = [&](int64_t p) {
      return PanelPlace{place_.first + p * kWidth, panel_rows(p), first, count};
    };
    const auto range_of = [&](int64_t p) {
      PanelRange range =
          panel_range(geometry_, run.flags, place_.first + p * kWidth, panel_rows(p), first, count);
      range.see_all(kWidth);  // the gate looks at all scores
      return range;
    };
    const auto scores_of = [&](int64_t p) {
      return scratch_.scores + p * padded_rows(plan_.tile.keys) * kWidth;
    };
    bool any = false;
    bool skip = (run.flags & kRunGated) != 0;
    for (int64_t p = 0; p < place_.panels; ++p) {
      const PanelRange range = range_of(p);
      if (range.first < range.last) {
        score(h, p, run, range, place_of(p), scores_of(p));
        const auto [some, low] = gate_.survey(h, p, panel_rows(p), range, scores_of(p));
        any = any || some;
        skip = skip && low;
      }
    }
    if (skip) {
      for (int64_t p = 0; p < place_.panels; ++p) {
        gate_.note_loss(h, p);
      }
      return;
    }
    if (any) {
      gate_.mark_kept(h, tile);
      load_values();
    }
    for (int64_t p = 0; any && p < place_.panels; ++p) {
      const PanelRange range = range_of(p);
      if (range.first < range.last) {
        absorb(h, p, range, place_of(p), scores_of(p));
      }
    }
  }

  CpuHeadScore head_score(int64_t h) const {
    return CpuHeadScore(plan_.score, place_.sequence, place_.head + static_cast<int32_t>(h));
  }

  void drop(int64_t h, const PanelRange& range, const PanelPlace& place, float* scores) {
    const Lanes d;
    dropout_factors<NV>(plan_.score, head_score(h), geometry_, range, place, scratch_.dropout);
    for (int64_t i = range.first * kWidth; i < range.last * kWidth; i += kLanes) {
      hn::Store(hn::Mul(hn::Load(d, scores + i), hn::Load(d, scratch_.dropout + i)), d, scores + i);
    }
  }

  // Replaces scores by exp2(unit score - largest), updates largest and sum, leaves the factor by
  // which what was summed before shrinks.
  void softmax(int64_t state, const PanelRange& range, float* scores) {
    const Lanes d;
    const auto unit = hn::Set(d, plan_.score.unit);
    float* largest = scratch_.largest + state * kWidth;
    float* sum = scratch_.sum + state * kWidth;
    Vector top[NV];
    Vector total[NV];
    for (int c = 0; c < NV; ++c) {
      top[c] = hn::Set(d, -std::numeric_limits<float>::infinity());
    }
    for (int64_t k = range.first; k < range.last; ++k) {
      const float* row = scores + k * kWidth;
      for (int c = 0; c < NV; ++c) {
        top[c] = hn::Max(top[c], hn::Load(d, row + c * kLanes));
      }
    }
    for (int c = 0; c < NV; ++c) {
      top[c] = hn::Max(hn::Load(d, largest + c * kLanes), hn::Mul(top[c], unit));
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
        const auto p = exp2_f32(d, hn::MulSub(hn::Load(d, row + c * kLanes), unit, top[c]));
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
    const auto unit = hn::Set(d, plan_.score.unit);
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
        const auto x = hn::MulSub(hn::Load(d, scores + k * kWidth + c * kLanes), unit, top[c]);
        const auto p = exp2_f32(d, shannon ? x : hn::Mul(order, x));
        const auto term = shannon ? hn::Mul(p, x) : p;
        moment = hn::Add(moment, hn::IfThenElseZero(hn::Gt(p, hn::Zero(d)), term));
      }
      hn::Store(moment, d, moments);
    }
  }

  const ForwardPlan& plan_;
  ForwardScratch scratch_;
  SequenceRows lengths_;
  HeadGeometry geometry_;
  ForwardPlace place_;
  ForwardGate<NV> gate_;
  ForwardOutput<NV> output_;
};

}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#endif
