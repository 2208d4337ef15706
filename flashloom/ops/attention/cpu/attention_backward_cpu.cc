#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/cpu/attention_backward_plan.h"
#include "flashloom/ops/attention/cpu/attention_cpu.h"
#include "flashloom/ops/attention/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "flashloom/ops/attention/cpu/attention_backward_cpu.cc"
// clang-format off: the order matters
#include "hwy/foreach_target.h"
// clang-format on
#include "flashloom/ops/attention/cpu/tile_load-inl.h"
#include "flashloom/ops/attention/cpu/tile_mask-inl.h"
#include "flashloom/ops/attention/cpu/tile_math-inl.h"
#include "flashloom/ops/attention/cpu/tile_pairs-inl.h"
#include "flashloom/ops/attention/cpu/tile_score-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {
namespace {

constexpr int kBackwardVectors = 3;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Rows of out and what goes with it, found through the output index if there is one.
CpuRows output_rows(const BackwardPlan& plan, CpuRows rows, int32_t sequence, int32_t head,
                    const SequenceRows& lengths) {
  const int32_t* index = plan.source.output_index.at(sequence, head);
  rows.index = index == nullptr ? nullptr : index + lengths.query_first;
  return rows;
}

// log_sums and deltas of rows [first, last) of one (sequence, head).
void backward_rows(const BackwardPlan& plan, int32_t sequence, int32_t head, int64_t first,
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
    plan.log_sums[to + i] = log_sum * std::numbers::log2e_v<float>;
    plan.deltas[to + i] = hn::GetLane(hn::SumOfLanes(d, sum)) - scalar(dlse, i);
    if (plan.with_entropy) {
      plan.entropies[to + i] = scalar(entropy, i);
      plan.dentropies[to + i] = scalar(dentropy, i);
    }
  }
}

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
        tile_keys_(padded_rows(plan.tile.keys)) {}

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
    softmax(range);
    const bool drop = plan_.score.dropout > 0;
    if (drop) {
      dropout_factors<NV>(plan_.score, head_score, geometry, range, place, scratch_.dropped);
      multiply(range, scratch_.dropped, kWidth, scratch_.probabilities);
    }
    accumulate_weighted<NV>(plan_.dvalue_pairs,
                            scratch_.dvalues + panel * plan_.value_padded * kWidth, scratch_.douts,
                            scratch_.dout_rows, tile_rows_, value_groups,
                            drop ? scratch_.dropped : scratch_.probabilities, kWidth,
                            scratch_.packed, range.first, range.last);
    score_rows<NV>(plan_.value_pairs, plan_.value_pairs ? scratch_.dout_pairs : scratch_.douts,
                   tile_rows_, scratch_.values + panel * plan_.dvalue_padded * kWidth,
                   plan_.dvalue_padded, 1, range.first, range.last, dscores, score_width_);
    backpropagate_softmax(range, drop ? scratch_.dropped : scratch_.probabilities, dscores);
    if (plan_.with_entropy) {
      backpropagate_entropy(range, dscores);
    }
    if (plan_.gradients->dbias) {
      add_bias_gradient(head_score, range, place, dscores);
    }
    if (plan_.score.softcap > 0) {
      multiply(range, dscores, score_width_, scratch_.slopes);
    }
    accumulate_weighted<NV>(plan_.dkey_pairs, scratch_.dkeys + panel * plan_.head_padded * kWidth,
                            scratch_.queries, scratch_.query_rows, tile_rows_, head_groups, dscores,
                            score_width_, scratch_.packed, range.first, range.last);
  }

  void softmax(const PanelRange& range) {
    const Lanes d;
    for (int64_t i = range.first; i < range.last; ++i) {
      float* row = scratch_.probabilities + i * kWidth;
      const auto log_sum = hn::Set(d, scratch_.log_sums[i]);
      for (int c = 0; c < kWidth; c += kLanes) {
        const auto x = hn::Sub(hn::Load(d, row + c), log_sum);
        if (plan_.with_entropy) {
          hn::Store(x, d, scratch_.centred + i * kWidth + c);
        }
        hn::Store(exp2_f32(d, x), d, row + c);
      }
    }
  }

  static void multiply(const PanelRange& range, float* values, int64_t stride,
                       const float* factors) {
    const Lanes d;
    for (int64_t i = range.first; i < range.last; ++i) {
      for (int c = 0; c < kWidth; c += kLanes) {
        float* at = values + i * stride + c;
        hn::Store(hn::Mul(hn::Load(d, at), hn::Load(d, factors + i * kWidth + c)), d, at);
      }
    }
  }

  // dS = Z o P o dP - P o D', with Z o P the probabilities after dropout.
  void backpropagate_softmax(const PanelRange& range, const float* dropped, float* dscores) {
    const Lanes d;
    const bool drop = dropped != scratch_.probabilities;
    for (int64_t i = range.first; i < range.last; ++i) {
      const float* p = scratch_.probabilities + i * kWidth;
      float* ds = dscores + i * score_width_;
      const auto delta = hn::Set(d, scratch_.deltas[i]);
      for (int c = 0; c < kWidth; c += kLanes) {
        const auto dp = hn::Load(d, ds + c);
        const auto weight = hn::Load(d, p + c);
        hn::Store(
            drop ? hn::NegMulAdd(weight, delta, hn::Mul(hn::Load(d, dropped + i * kWidth + c), dp))
                 : hn::Mul(weight, hn::Sub(dp, delta)),
            d, ds + c);
      }
    }
  }

  // Shannon: dS -= dentropy P (log P + H); Renyi of order a, with R = P^a / sum P^a:
  // dS += dentropy a / (1 - a) (R - P). Centred, so that nothing cancels.
  void backpropagate_entropy(const PanelRange& range, float* dscores) {
    const Lanes d;
    const float order = plan_.saved->entropy_order;
    const auto zero = hn::Zero(d);
    for (int64_t i = range.first; i < range.last; ++i) {
      const float gradient = scratch_.dentropies[i];
      const auto h = hn::Set(d, scratch_.entropies[i]);
      const auto share =
          hn::Set(d, (order - 1) * scratch_.entropies[i] * std::numbers::log2e_v<float>);
      const auto factor = hn::Set(d, order == 1 ? -gradient : gradient * order / (1 - order));
      for (int c = 0; c < kWidth; c += kLanes) {
        const auto p = hn::Load(d, scratch_.probabilities + i * kWidth + c);
        const auto x = hn::Load(d, scratch_.centred + i * kWidth + c);
        const auto change =
            order == 1 ? hn::Mul(p, hn::MulAdd(x, hn::Set(d, std::numbers::ln2_v<float>), h))
                       : hn::Sub(exp2_f32(d, hn::MulAdd(hn::Set(d, order), x, share)), p);
        float* ds = dscores + i * score_width_ + c;
        const auto visible = hn::IfThenElseZero(hn::Gt(p, zero), change);
        hn::Store(hn::MulAdd(factor, visible, hn::Load(d, ds)), d, ds);
      }
    }
  }

  void add_bias_gradient(const CpuHeadScore& head_score, const PanelRange& range,
                         const PanelPlace& place, const float* dscores) {
    const TensorView& all = plan_.gradients->dbias;
    TensorView dbias = all.select(0, all.dim(0) == 1 ? 0 : sequence_);
    dbias = dbias.select(0, dbias.dim(0) == 1 ? 0 : head_score.head);
    const int64_t row_stride = dbias.dim(0) == 1 ? 0 : dbias.stride(0);
    for (int64_t i = range.first; i < std::min(range.last, place.inner_count); ++i) {
      float* row = dbias.as<float>() + (place.inner_first + i) * row_stride + place.outer_first;
      for (int64_t lane = 0; lane < place.outer_count; ++lane) {
        row[lane] += dscores[i * score_width_ + lane];
      }
    }
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
  int64_t first_key_ = 0;
  int64_t keys_ = 0;     // that exist in this tile
  bool loaded_ = false;  // this tile's keys and values
};

void backward_chunk(const BackwardPlan& plan, int32_t sequence, int32_t key_head, int64_t chunk,
                    float* memory) {
  BackwardChunk<kBackwardVectors>(plan, sequence, key_head, chunk, memory).run();
}

// dq of rows [first, last): the chunks' partial sums, in order.
void reduce_queries(const BackwardPlan& plan, int32_t sequence, int32_t head, int64_t first,
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

int64_t backward_panel_width() {
  return kBackwardVectors * kLanes;
}

bool backward_pairs() {
  return bf16_pairs_available();
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashloom {

HWY_EXPORT(backward_rows);
HWY_EXPORT(backward_chunk);
HWY_EXPORT(reduce_queries);
HWY_EXPORT(backward_panel_width);
HWY_EXPORT(backward_pairs);

namespace {

constexpr int64_t kRowsATask = 128;

// The plan with its pieces of the workspace; with null memory only their size, in *floats.
BackwardPlan backward_plan(const AttentionGradients& gradients, const AttentionInputs& inputs,
                           const AttentionSaved& saved, const AttentionOptions& options,
                           float* memory, int64_t* floats) {
  BackwardPlan plan = {};
  plan.gradients = &gradients;
  plan.inputs = &inputs;
  plan.saved = &saved;
  plan.options = &options;
  plan.source = geometry_source(inputs, options);
  plan.head_dim = inputs.q.dim(-1);
  plan.value_dim = inputs.v.dim(-1);
  plan.head_padded = padded_depth(plan.head_dim);
  plan.value_padded = padded_depth(plan.value_dim);
  plan.panel_width = HWY_DYNAMIC_DISPATCH(backward_panel_width)();
  const bool pairs = HWY_DYNAMIC_DISPATCH(backward_pairs)();
  plan.score_pairs = pairs && stored_as_pairs(inputs.q, inputs.k);
  plan.value_pairs = pairs && stored_as_pairs(saved.dout, inputs.v);
  plan.dkey_pairs = pairs && inputs.q.dtype == DType::bf16 && gradients.dk.dtype == DType::bf16;
  plan.dvalue_pairs = pairs && saved.dout.dtype == DType::bf16 && gradients.dv.dtype == DType::bf16;
  plan.score_depth = plan.score_pairs ? plan.head_dim / 2 : plan.head_dim;
  plan.score_padded = padded_depth(plan.score_depth);
  plan.dvalue_depth = plan.value_pairs ? plan.value_dim / 2 : plan.value_dim;
  plan.dvalue_padded = padded_depth(plan.dvalue_depth);
  plan.tile = {tile_side(plan.source.block_rows, kBackwardQueries),
               tile_side(plan.source.block_keys, kBackwardKeys)};
  plan.panels = tile_count(plan.tile.keys, plan.panel_width);
  plan.key_tiles = tile_count(plan.source.max_key, plan.tile.keys);
  const int64_t heads =
      std::max<int64_t>(1, int64_t{plan.source.sequences} * plan.source.key_heads);
  plan.chunks = std::clamp<int64_t>(tile_count(kBackwardTasks, heads), 1,
                                    std::clamp<int64_t>(plan.key_tiles, 1, kMaxKeyChunks));
  plan.total_rows =
      (plan.source.cu_query != nullptr ? int64_t{plan.source.total_query}
                                       : int64_t{plan.source.sequences} * plan.source.max_query) +
      plan.source.sequences * kRowPadding;
  plan.score = CpuScore(options, plan.head_dim);
  plan.with_entropy = static_cast<bool>(saved.dentropy);
  plan.scratch_floats = BackwardScratch(plan, nullptr).floats;
  FloatArena arena(memory);
  plan.log_sums = arena.take(plan.source.heads * plan.total_rows);
  plan.deltas = arena.take(plan.source.heads * plan.total_rows);
  if (plan.with_entropy) {
    plan.entropies = arena.take(plan.source.heads * plan.total_rows);
    plan.dentropies = arena.take(plan.source.heads * plan.total_rows);
  }
  plan.partial = arena.take(plan.chunks * plan.source.heads * plan.total_rows * plan.head_padded);
  plan.scratch = arena.take(thread_count() * plan.scratch_floats);
  *floats = arena.used();
  return plan;
}

void clear_unless(bool accumulate, const TensorView& dbias) {
  for (int64_t b = 0; !accumulate && b < dbias.dim(0); ++b) {
    for (int64_t h = 0; h < dbias.dim(1); ++h) {
      const TensorView rows = dbias.select(0, b).select(0, h);
      for (int64_t i = 0; i < rows.dim(0); ++i) {
        std::fill_n(rows.as<float>() + i * rows.stride(0), rows.dim(1), 0.0f);
      }
    }
  }
}

// A sink is a key of value 0: its dP is 0.
void backward_sinks(const BackwardPlan& plan) {
  const TensorView& dsinks = plan.gradients->dsinks;
  const ConstTensorView& sinks = plan.options->score.sinks;
  const double order = plan.saved->entropy_order;
  parallel_for(plan.source.heads, [&](int64_t head) {
    const double sink = sinks.as<float>()[head * sinks.stride(0)];
    double sum = 0;
    for (int32_t b = 0; b < plan.source.sequences; ++b) {
      const SequenceRows rows = resolve_rows(plan.source, b);
      const HeadGeometry geometry = resolve_head(plan.source, rows, b, static_cast<int32_t>(head));
      const int64_t first = head * plan.total_rows + plan.first_row(b, rows);
      for (int64_t i = first; i < first + geometry.outer.count; ++i) {
        const double x = sink - plan.log_sums[i] * std::numbers::ln2;
        const double p = std::exp(x);
        sum -= p > 0 ? p * plan.deltas[i] : 0;
        if (plan.with_entropy && p > 0) {
          const double h = plan.entropies[i];
          sum += plan.dentropies[i] *
                 (order == 1 ? -p * (x + h)
                             : order / (1 - order) * (std::exp(order * x + (order - 1) * h) - p));
        }
      }
    }
    float& out = dsinks.as<float>()[head * dsinks.stride(0)];
    out = static_cast<float>(sum + (plan.gradients->accumulate ? out : 0.0f));
  });
}

}  // namespace

BackwardScratch::BackwardScratch(const BackwardPlan& plan, float* memory) {
  FloatArena arena(memory);
  const int64_t tile_rows = padded_rows(plan.tile.rows);
  const int64_t tile_keys = padded_rows(plan.tile.keys);
  const int64_t width = plan.panel_width;
  keys = arena.take(plan.panels * plan.score_padded * width);
  values = arena.take(plan.panels * plan.dvalue_padded * width);
  grouped_keys = arena.take(plan.head_padded * tile_keys);
  dkeys = arena.take(plan.panels * plan.head_padded * width);
  dvalues = arena.take(plan.panels * plan.value_padded * width);
  queries = arena.take(plan.head_padded * tile_rows);
  douts = arena.take(plan.value_padded * tile_rows);
  query_pairs = arena.take(plan.score_pairs ? plan.score_padded * tile_rows : 0);
  dout_pairs = arena.take(plan.value_pairs ? plan.dvalue_padded * tile_rows : 0);
  query_rows = arena.take(plan.dkey_pairs ? plan.head_padded * tile_rows / 2 : 0);
  dout_rows = arena.take(plan.dvalue_pairs ? plan.value_padded * tile_rows / 2 : 0);
  packed = arena.take(plan.dkey_pairs || plan.dvalue_pairs ? tile_rows / 2 * width : 0);
  probabilities = arena.take(tile_rows * width);
  dscores = arena.take(tile_rows * plan.panels * width);
  slopes = arena.take(plan.score.softcap > 0 ? tile_rows * width : 0);
  dropped = arena.take(plan.score.dropout > 0 ? tile_rows * width : 0);
  centred = arena.take(plan.with_entropy ? tile_rows * width : 0);
  entropies = arena.take(tile_rows);
  dentropies = arena.take(tile_rows);
  log_sums = arena.take(tile_rows);
  deltas = arena.take(tile_rows);
  rows = arena.take(width * std::max(plan.head_padded, plan.value_padded));
  floats = arena.used();
}

int64_t attention_backward_cpu_bytes(const AttentionGradients& gradients,
                                     const AttentionInputs& inputs, const AttentionSaved& saved,
                                     const AttentionOptions& options) {
  int64_t floats = 0;
  backward_plan(gradients, inputs, saved, options, nullptr, &floats);
  return floats * 4;
}

void attention_backward_cpu(const AttentionGradients& gradients, const AttentionInputs& inputs,
                            const AttentionSaved& saved, std::span<std::byte> workspace,
                            const AttentionOptions& options) {
  int64_t floats = 0;
  const BackwardPlan plan = backward_plan(gradients, inputs, saved, options,
                                          reinterpret_cast<float*>(workspace.data()), &floats);
  const GeometrySource& source = plan.source;
  if (source.heads == 0) {
    return;
  }
  const int64_t row_tasks = tile_count(source.max_query, kRowsATask);
  const auto for_rows = [&](auto body) {
    parallel_for(row_tasks * source.sequences * source.heads, [&](int64_t task) {
      const int64_t first = task % row_tasks * kRowsATask;
      const int64_t rest = task / row_tasks;
      body(static_cast<int32_t>(rest / source.heads), static_cast<int32_t>(rest % source.heads),
           first, first + kRowsATask);
    });
  };
  for_rows([&](int32_t sequence, int32_t head, int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(backward_rows)(plan, sequence, head, first, last);
  });
  const auto run_chunk = [&](int64_t sequence_and_head, int64_t chunk, int worker) {
    HWY_DYNAMIC_DISPATCH(backward_chunk)
    (plan, static_cast<int32_t>(sequence_and_head / source.key_heads),
     static_cast<int32_t>(sequence_and_head % source.key_heads), chunk,
     plan.scratch + worker * plan.scratch_floats);
  };
  const int64_t heads = int64_t{source.sequences} * source.key_heads;
  if (gradients.dbias) {
    clear_unless(gradients.accumulate, gradients.dbias);
    // Sequences and heads may share a bias; chunks never share a key.
    for (int64_t n = 0; n < heads; ++n) {
      parallel_for_workers(plan.chunks,
                           [&](int64_t chunk, int worker) { run_chunk(n, chunk, worker); });
    }
  } else {
    parallel_for_workers(plan.chunks * heads, [&](int64_t task, int worker) {
      run_chunk(task / plan.chunks, task % plan.chunks, worker);
    });
  }
  if (gradients.dsinks) {
    backward_sinks(plan);
  }
  for_rows([&](int32_t sequence, int32_t head, int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(reduce_queries)(plan, sequence, head, first, last);
  });
}

}  // namespace flashloom
#endif  // HWY_ONCE
