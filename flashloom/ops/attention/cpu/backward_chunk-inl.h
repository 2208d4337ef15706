// One task of the backward pass. Included once per target.
#if defined(FLASHLOOM_OPS_ATTENTION_CPU_BACKWARD_CHUNK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHLOOM_OPS_ATTENTION_CPU_BACKWARD_CHUNK_INL_H_
#undef FLASHLOOM_OPS_ATTENTION_CPU_BACKWARD_CHUNK_INL_H_
#else
#define FLASHLOOM_OPS_ATTENTION_CPU_BACKWARD_CHUNK_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "flashloom/ops/attention/cpu/attention_backward_plan.h"
#include "flashloom/ops/attention/cpu/backward_rows-inl.h"
#include "flashloom/ops/attention/cpu/backward_scores-inl.h"
#include "flashloom/ops/attention/cpu/tile_load-inl.h"
#include "flashloom/ops/attention/cpu/tile_mask-inl.h"
#include "flashloom/ops/attention/cpu/tile_math-inl.h"
#include "flashloom/ops/attention/cpu/tile_pairs-inl.h"
#include "flashloom/ops/attention/cpu/tile_score-inl.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {

// One task: a chunk of the key tiles of one key-value head.
template <int NV>
class BackwardChunk {
 public:
  static constexpr int kWidth = NV * kLanes;

  BackwardChunk(const BackwardPlan& plan, int32_t sequence, int32_t key_head, int64_t chunk,
                float* memory)
      : plan_(plan),
        scratch_(plan, memory),
        sequence_(sequence),
        key_head_(key_head),
        chunk_(chunk),
        group_(plan.source.heads / plan.source.key_heads),
        rows_(resolve_rows(plan.source, sequence)),
        score_width_(plan.panels * kWidth),
        tile_rows_(padded_rows(plan.tile.rows)),
        tile_keys_(padded_rows(plan.tile.keys)),
        scores_{plan, scratch_, score_width_} {}

  void run() {
    for (int32_t h = key_head_ * group_; h < (key_head_ + 1) * group_; ++h) {
      std::fill_n(partial(h, 0), (rows_.queries + kRowPadding) * plan_.head_padded, 0.0f);
    }
    for (int64_t tile = chunk_; tile * plan_.tile.keys < rows_.key_rows; tile += plan_.chunks) {
      first_key_ = tile * plan_.tile.keys;
      const HeadGeometry geometry =
          resolve_head(plan_.source, rows_, sequence_, key_head_ * group_);
      keys_ = std::clamp<int64_t>(geometry.inner.count - first_key_, 0, plan_.tile.keys);
      loaded_ = false;
      for (int32_t h = key_head_ * group_; keys_ > 0 && h < (key_head_ + 1) * group_; ++h) {
        walk_queries(h, tile);
      }
      write_keys();
    }
  }

 private:
  float* partial(int32_t head, int64_t row) const {
    const int64_t at = (chunk_ * plan_.source.heads + head) * plan_.total_rows +
                       plan_.first_row(sequence_, rows_) + row;
    return plan_.partial + at * plan_.head_padded;
  }

  int64_t panel_keys(int64_t panel) const {
    return std::min<int64_t>(kWidth, keys_ - panel * kWidth);
  }

  void load_keys() {
    const bool packed = plan_.source.cu_key != nullptr;
    const CpuRows keys = cpu_rows(plan_.inputs->k, packed, sequence_, key_head_, rows_.key_first);
    const CpuRows values = cpu_rows(plan_.inputs->v, packed, sequence_, key_head_, rows_.key_first);
    const CpuRows score_keys = plan_.score_pairs ? as_pairs(keys) : keys;
    const CpuRows dvalue_values = plan_.value_pairs ? as_pairs(values) : values;
    for (int64_t p = 0; p < plan_.panels; ++p) {
      const int64_t count = std::max<int64_t>(panel_keys(p), 0);
      load_panel(score_keys, first_key_ + p * kWidth, count, kWidth, plan_.score_depth,
                 plan_.score_padded, plan_.score_pairs ? 1.0f : plan_.score.panel_scale,
                 scratch_.rows, scratch_.keys + p * plan_.score_padded * kWidth);
      load_panel(dvalue_values, first_key_ + p * kWidth, count, kWidth, plan_.dvalue_depth,
                 plan_.dvalue_padded, 1, scratch_.rows,
                 scratch_.values + p * plan_.dvalue_padded * kWidth);
    }
    load_grouped(keys, first_key_, keys_, tile_keys_, plan_.head_dim, plan_.head_padded,
                 scratch_.rows, scratch_.grouped_keys);
    std::fill_n(scratch_.dkeys, plan_.panels * plan_.head_padded * kWidth, 0.0f);
    std::fill_n(scratch_.dvalues, plan_.panels * plan_.value_padded * kWidth, 0.0f);
  }

  void walk_queries(int32_t head, int64_t key_tile) {
    const bool packed = plan_.source.cu_query != nullptr;
    const CpuRows queries = cpu_rows(plan_.inputs->q, packed, sequence_, head, rows_.query_first);
    const CpuRows douts =
        output_rows(plan_, cpu_rows(plan_.saved->dout, packed, sequence_, head, rows_.query_first),
                    sequence_, head, rows_);
    const CpuHeadScore head_score(plan_.score, sequence_, head);
    const HeadGeometry geometry = transposed(resolve_head(plan_.source, rows_, sequence_, head));
    const int64_t workspace_row = head * plan_.total_rows + plan_.first_row(sequence_, rows_);
    TileIterator runs(geometry, key_tile, plan_.tile);
    for (TileRun run = {}; runs.next(run);) {
      if (!loaded_) {  // keys that no query sees are never read
        load_keys();
        loaded_ = true;
      }
      for (int64_t tile = run.first; tile < run.first + run.count; ++tile) {
        const int64_t first = tile * plan_.tile.rows;
        const int64_t count = std::min<int64_t>(plan_.tile.rows, geometry.inner.count - first);
        load_queries(queries, douts, first, count);
        std::copy_n(plan_.log_sums + workspace_row + first, count, scratch_.log_sums);
        std::copy_n(plan_.deltas + workspace_row + first, count, scratch_.deltas);
        std::fill(scratch_.log_sums + count, scratch_.log_sums + tile_rows_, kInfinity);
        std::fill(scratch_.deltas + count, scratch_.deltas + tile_rows_, 0.0f);
        if (plan_.with_entropy) {
          std::copy_n(plan_.entropies + workspace_row + first, count, scratch_.entropies);
          std::copy_n(plan_.dentropies + workspace_row + first, count, scratch_.dentropies);
          std::fill(scratch_.entropies + count, scratch_.entropies + tile_rows_, 0.0f);
          std::fill(scratch_.dentropies + count, scratch_.dentropies + tile_rows_, 0.0f);
        }
        for (int64_t p = 0; p < plan_.panels && panel_keys(p) > 0; ++p) {
          backpropagate_panel(geometry, head_score, run, p, first, count);
        }
        backpropagate_queries(geometry, run, head, first, count);
      }
    }
  }

  // A tile of q and dout in the layouts that its products take.
  void load_queries(const CpuRows& queries, const CpuRows& douts, int64_t first, int64_t count) {
    if (!plan_.score_pairs || !plan_.dkey_pairs) {
      load_grouped(queries, first, count, tile_rows_, plan_.head_dim, plan_.head_padded,
                   scratch_.rows, scratch_.queries);
    }
    if (!plan_.value_pairs || !plan_.dvalue_pairs) {
      load_grouped(douts, first, count, tile_rows_, plan_.value_dim, plan_.value_padded,
                   scratch_.rows, scratch_.douts);
    }
    if (plan_.score_pairs) {
      load_grouped(as_pairs(queries), first, count, tile_rows_, plan_.score_depth,
                   plan_.score_padded, scratch_.rows, scratch_.query_pairs);
    }
    if (plan_.value_pairs) {
      load_grouped(as_pairs(douts), first, count, tile_rows_, plan_.dvalue_depth,
                   plan_.dvalue_padded, scratch_.rows, scratch_.dout_pairs);
    }
    if (plan_.dkey_pairs) {
      load_row_pairs(queries, first, count, tile_rows_, plan_.head_dim, plan_.head_padded,
                     scratch_.query_rows);
    }
    if (plan_.dvalue_pairs) {
      load_row_pairs(douts, first, count, tile_rows_, plan_.value_dim, plan_.value_padded,
                     scratch_.dout_rows);
    }
  }

  // Scores and their gradient for one panel of keys and one tile of queries; adds to the panel's dk
  // and dv.
  void backpropagate_panel(const HeadGeometry& geometry, const CpuHeadScore& head_score,
                           const TileRun& run, int64_t panel, int64_t first, int64_t count) {
    const PanelPlace place = {first_key_ + panel * kWidth, panel_keys(panel), first, count};
    const PanelRange range =
        panel_range(geometry, run.flags, place.outer_first, place.outer_count, first, count);
    float* dscores = scratch_.dscores + panel * kWidth;
    for (int64_t i = 0; i < range.first; ++i) {
      std::fill_n(dscores + i * score_width_, kWidth, 0.0f);
    }
    for (int64_t i = range.last; i < count; ++i) {
      std::fill_n(dscores + i * score_width_, kWidth, 0.0f);
    }
    if (range.first >= range.last) {
      return;
    }
    const int64_t head_groups = plan_.head_padded / kDepthGroup;
    const int64_t value_groups = plan_.value_padded / kDepthGroup;
    score_rows<NV>(plan_.score_pairs, plan_.score_pairs ? scratch_.query_pairs : scratch_.queries,
                   tile_rows_, scratch_.keys + panel * plan_.score_padded * kWidth,
                   plan_.score_padded, plan_.score.panel_scale, range.first, range.last,
                   scratch_.probabilities, kWidth);
    if (!plan_.score.plain) {
      adjust_scores<NV>(plan_.score, head_score, geometry, range, place, scratch_.probabilities,
                        scratch_.slopes);
    }
    if (range.masked) {
      mask_panel<NV>(geometry, run.flags, run.partial, range, place.outer_first, place.outer_count,
                     first, count, scratch_.probabilities, kWidth);
    }
    scores_.softmax(range);
    const bool drop = plan_.score.dropout > 0;
    if (drop) {
      dropout_factors<NV>(plan_.score, head_score, geometry, range, place, scratch_.dropped);
      scores_.multiply(range, scratch_.dropped, kWidth, scratch_.probabilities);
    }
    accumulate_weighted<NV>(plan_.dvalue_pairs,
                            scratch_.dvalues + panel * plan_.value_padded * kWidth, scratch_.douts,
                            scratch_.dout_rows, tile_rows_, value_groups,
                            drop ? scratch_.dropped : scratch_.probabilities, kWidth,
                            scratch_.packed, range.first, range.last);
    score_rows<NV>(plan_.value_pairs, plan_.value_pairs ? scratch_.dout_pairs : scratch_.douts,
                   tile_rows_, scratch_.values + panel * plan_.dvalue_padded * kWidth,
                   plan_.dvalue_padded, 1, range.first, range.last, dscores, score_width_);
    scores_.backpropagate_softmax(range, drop ? scratch_.dropped : scratch_.probabilities, dscores);
    if (plan_.with_entropy) {
      scores_.backpropagate_entropy(range, dscores);
    }
    if (plan_.gradients->dbias) {
      scores_.add_bias_gradient(sequence_, head_score, range, place, dscores);
    }
    if (plan_.score.softcap > 0) {
      scores_.multiply(range, dscores, score_width_, scratch_.slopes);
    }
    accumulate_weighted<NV>(plan_.dkey_pairs, scratch_.dkeys + panel * plan_.head_padded * kWidth,
                            scratch_.queries, scratch_.query_rows, tile_rows_, head_groups, dscores,
                            score_width_, scratch_.packed, range.first, range.last);
  }

  // Adds dS K to the partial dq of a tile of queries.
  void backpropagate_queries(const HeadGeometry& geometry, const TileRun& run, int32_t head,
                             int64_t first, int64_t count) {
    const int64_t dim = plan_.head_padded;
    const bool affine = (run.flags & kRunPositions) != 0 && is_affine(geometry);
    const int64_t shift =
        geometry.outer.start - geometry.inner.start + first_key_ - first;  // query - key + shift
    float* rows = partial(head, first);
    // A register tile may overhang into the next tile's rows, to which it must add nothing.
    for (int64_t i = count; i % kGroupRows != 0; ++i) {
      std::fill_n(scratch_.dscores + i * score_width_, score_width_, 0.0f);
    }
    for (int64_t g = 0; g < dim / kDepthGroup; ++g) {
      for (int64_t i = 0; i < count; i += kGroupRows) {
        int64_t from = 0;
        int64_t to = keys_;
        if (affine) {
          // query - key in [low, high], geometry being transposed
          from = std::max(from, i - geometry.high - shift);
          to = std::min(to, i + kGroupRows - geometry.low - shift);
        }
        if (from < to) {
          accumulate_rows(rows + i * dim + g * kDepthGroup, dim,
                          scratch_.dscores + i * score_width_, score_width_,
                          scratch_.grouped_keys + g * tile_keys_ * kDepthGroup, from, to);
        }
      }
    }
  }

  void write_keys() {
    const bool packed = plan_.source.cu_key != nullptr;
    const bool accumulate = plan_.gradients->accumulate;
    const TensorView dk =
        attention_head_rows(plan_.gradients->dk, packed, sequence_, key_head_, rows_.key_first);
    const TensorView dv =
        attention_head_rows(plan_.gradients->dv, packed, sequence_, key_head_, rows_.key_first);
    const int64_t end = std::min<int64_t>(plan_.tile.keys, rows_.key_rows - first_key_);
    for (int64_t p = 0; p * kWidth < end; ++p) {
      const int64_t count = std::min<int64_t>(kWidth, end - p * kWidth);
      write_panel(dk, scratch_.dkeys + p * plan_.head_padded * kWidth, plan_.head_dim,
                  plan_.head_padded, plan_.score.scale, p, count, accumulate);
      write_panel(dv, scratch_.dvalues + p * plan_.value_padded * kWidth, plan_.value_dim,
                  plan_.value_padded, 1, p, count, accumulate);
    }
  }

  // Keys behind the end, and those that no query sees, have gradient 0: their lanes may hold
  // anything.
  void write_panel(const TensorView& out, const float* panel, int64_t width, int64_t padded,
                   float scale, int64_t p, int64_t count, bool accumulate) {
    const Lanes d;
    transpose(panel, padded, kWidth, scratch_.rows);
    for (int64_t lane = 0; lane < count; ++lane) {
      float* row = scratch_.rows + lane * padded;
      const bool exists = loaded_ && p * kWidth + lane < keys_;
      for (int64_t c = 0; c < padded; c += kLanes) {
        const auto value = hn::Mul(hn::Load(d, row + c), hn::Set(d, scale));
        hn::Store(exists ? value : hn::Zero(d), d, row + c);
      }
      store_row(mutable_row(out, first_key_ + p * kWidth + lane), out.dtype, width, row,
                accumulate);
    }
  }

  const BackwardPlan& plan_;
  BackwardScratch scratch_;
  int32_t sequence_;
  int32_t key_head_;
  int64_t chunk_;
  int32_t group_;
  SequenceRows rows_;
  int64_t score_width_;
  int64_t tile_rows_;
  int64_t tile_keys_;
  BackwardScores<NV> scores_;
  int64_t first_key_ = 0;
  int64_t keys_ = 0;     // that exist in this tile
  bool loaded_ = false;  // this tile's keys and values
};

}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#endif
