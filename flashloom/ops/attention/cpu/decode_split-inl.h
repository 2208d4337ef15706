// One task of decoding: a split of the keys of one (sequence, key-value head). Included once per
// target.
#if defined(FLASHLOOM_OPS_ATTENTION_CPU_DECODE_SPLIT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHLOOM_OPS_ATTENTION_CPU_DECODE_SPLIT_INL_H_
#undef FLASHLOOM_OPS_ATTENTION_CPU_DECODE_SPLIT_INL_H_
#else
#define FLASHLOOM_OPS_ATTENTION_CPU_DECODE_SPLIT_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/cpu/decode_products-inl.h"
#include "flashloom/ops/attention/cpu/tile_score-inl.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {

// Largest score of a row before it has seen a key, as in the tiled kernel.
constexpr float kNoScore = -1e30f;

/// Calls body(std::integral_constant<int, R>) for R = rows, at most kServedRows.
template <class Body>
HWY_INLINE void with_rows(int64_t rows, Body body) {
  if constexpr (kServedRows >= 4) {
    if (rows == 4) {
      body(std::integral_constant<int, 4>());
      return;
    }
    if (rows == 3) {
      body(std::integral_constant<int, 3>());
      return;
    }
  }
  if (rows == 2) {
    body(std::integral_constant<int, 2>());
  } else {
    body(std::integral_constant<int, 1>());
  }
}

/// Walks the split's keys block by block: scores of all rows, their softmax so far, the values. The
/// phase of keys fetches the block's values, that of values the next block's keys.
class DecodeSplit {
 public:
  DecodeSplit(const DecodePlan& plan, int32_t sequence, int32_t key_head, int64_t split,
              float* scratch)
      : plan_(plan),
        sequence_(sequence),
        key_head_(key_head),
        lengths_(resolve_rows(plan.source, sequence)),
        geometry_(resolve_head(plan.source, lengths_, sequence,
                               static_cast<int32_t>(key_head * plan.group))),
        key_rows_(cpu_key_rows(plan.inputs->k, plan.options->sequences, sequence, key_head,
                               lengths_.key_first)),
        value_rows_(cpu_key_rows(plan.inputs->v, plan.options->sequences, sequence, key_head,
                                 lengths_.key_first)),
        key_format_(
            row_format(key_rows_.dtype, plan.head_dim, plan.head_padded,
                       bf16_pairs_available() && stored_as_pairs(plan.inputs->q, plan.inputs->k))),
        value_format_(row_format(value_rows_.dtype, plan.value_dim, plan.value_padded, false)),
        shift_(geometry_.outer.start - geometry_.inner.start) {
    const int64_t begin = split * plan.split_keys;
    const int64_t end = std::min<int64_t>(begin + plan.split_keys, lengths_.keys);
    first_ = std::max(begin, geometry_.low + shift_);
    last_ = std::min(end, geometry_.outer.count + geometry_.high + shift_);
    FloatArena arena(scratch);
    queries_ = arena.take(plan.rows * plan.head_padded);
    keys_ = arena.take(kDecodeBlock * plan.head_padded);
    values_ = arena.take(kDecodeBlock * plan.value_padded);
    out_ = plan.partial_of(sequence, key_head, split);
    largest_ = out_ + plan.rows * plan.value_padded;
    sum_ = largest_ + plan.rows;
  }

  void run() {
    std::fill_n(out_, plan_.rows * plan_.value_padded, 0.0f);
    std::fill_n(largest_, plan_.rows, kNoScore);
    std::fill_n(sum_, plan_.rows, 0.0f);
    if (geometry_.outer.count == 0 || first_ >= last_) {
      return;
    }
    load_queries();
    std::fill_n(&totals_[0][0], kDecodeRows * kLanes, 0.0f);
    RowPointers keys = {};
    RowPointers values = {};
    RowPointers next_keys = {};
    RowPointers next_values = {};
    point(key_rows_, first_, keys);
    point(value_rows_, first_, values);
    for (int64_t key = first_; key < last_; key += plan_.block) {
      const int64_t count = std::min(plan_.block, last_ - key);
      const int64_t next = key + plan_.block;
      if (next < last_) {
        point(key_rows_, next, next_keys);
        point(value_rows_, next, next_values);
      }
      score(key, count, keys, {values.data(), count, value_format_.bytes});
      for (int64_t row = 0; row < plan_.rows; ++row) {
        soften(row, key, count);
      }
      add(count, values,
          {next_keys.data(), std::clamp<int64_t>(last_ - next, 0, plan_.block), key_format_.bytes});
      keys = next_keys;
      values = next_values;
    }
    const Lanes d;
    for (int64_t row = 0; row < plan_.rows; ++row) {
      sum_[row] = hn::GetLane(hn::SumOfLanes(d, hn::Load(d, totals_[row])));
    }
  }

 private:
  // Rows of queries in the order in which keys are read; those that do not exist are 0.
  void load_queries() {
    std::memset(queries_, 0, static_cast<size_t>(plan_.rows * plan_.head_padded) * sizeof(float));
    const auto width = static_cast<size_t>(plan_.head_dim);
    for (int64_t row = 0; row < plan_.rows; ++row) {
      const int64_t query = row % plan_.source.max_query;
      if (query >= geometry_.outer.count) {
        continue;
      }
      const CpuRows source =
          cpu_rows(plan_.inputs->q, plan_.source.cu_query != nullptr, sequence_,
                   key_head_ * plan_.group + row / plan_.source.max_query, lengths_.query_first);
      float* to = queries_ + row * plan_.head_padded;
      if (key_format_.form == RowForm::pairs) {
        std::memcpy(to, source.row(query), 2 * width);
        continue;
      }
      if (key_format_.form != RowForm::bf16) {
        load_row(source.row(query), source.dtype, plan_.head_dim, plan_.head_padded, to);
        continue;
      }
      load_row(source.row(query), source.dtype, plan_.head_dim, plan_.head_padded, keys_);
      for (int64_t i = 0; i < plan_.head_dim; ++i) {
        to[place_of(RowForm::bf16, i)] = keys_[i];
      }
    }
  }

  // Where the keys of a block from `first` on lie.
  void point(const CpuRows& rows, int64_t first, RowPointers& pointers) const {
    const int64_t count = std::min(plan_.block, last_ - first);
    const std::byte* row = nullptr;
    for (int64_t j = 0; j < count;) {
      const int64_t key = first + j;
      // A division a page, not a key.
      const int64_t end = rows.pages == nullptr
                              ? count
                              : std::min(count, j + rows.page_size - key % rows.page_size);
      row = rows.row(key);
      for (; j < end; ++j, row += rows.stride) {
        pointers[static_cast<size_t>(j)] = row;
      }
    }
    std::fill(pointers.begin() + count, pointers.end(), pointers[static_cast<size_t>(count - 1)]);
  }

  // Calls body(first row, rows as a constant) for all rows, as equal parts as can be served.
  template <class Body>
  HWY_INLINE void for_served_rows(Body body) const {
    const int64_t part = tile_count(plan_.rows, tile_count(plan_.rows, int64_t{kServedRows}));
    for (int64_t row = 0; row < plan_.rows; row += part) {
      with_rows(std::min(part, plan_.rows - row), [&](auto rows) HWY_ATTR { body(row, rows); });
    }
  }

  void score(int64_t key, int64_t count, RowPointers& keys, NextRows next) {
    if (key_format_.converted) {
      convert_rows(key_rows_.dtype, plan_.head_dim, plan_.head_padded, count, keys_, keys);
    }
    const float scale = plan_.score.panel_scale;
    const int64_t width = plan_.head_padded;
    for_served_rows([&](int64_t row, auto rows) HWY_ATTR {
      constexpr int kRows = decltype(rows)::value;
      const float* q = queries_ + row * width;
      float* scores = scores_[row];
      const int64_t pieces = key_format_.pieces;
      switch (key_format_.form) {
        case RowForm::f32:
          score_keys<StoredF32, kRows>(q, width, keys, count, pieces, scale, next, scores,
                                       kDecodeBlock);
          break;
        case RowForm::f16:
          score_keys<StoredF16, kRows>(q, width, keys, count, pieces, scale, next, scores,
                                       kDecodeBlock);
          break;
        case RowForm::bf16:
          score_keys<StoredBf16, kRows>(q, width, keys, count, pieces, scale, next, scores,
                                        kDecodeBlock);
          break;
        case RowForm::pairs:
#if HWY_TARGET == HWY_AVX3
          score_key_pairs<kRows>(q, width, keys, count, pieces, scale, next, scores, kDecodeBlock);
#endif
          break;
      }
    });
    next.fetch_rest();
    if (!plan_.score.plain) {
      for (int64_t row = 0; row < plan_.rows; ++row) {
        finish_scores(row, key, count);
      }
    }
  }

  // Softcap and ALiBi.
  void finish_scores(int64_t row, int64_t key, int64_t count) {
    const Lanes d;
    const hn::RebindToSigned<Lanes> di;
    const CpuHeadScore head(
        plan_.score, sequence_,
        static_cast<int32_t>(key_head_ * plan_.group + row / plan_.source.max_query));
    const int64_t ahead =
        geometry_.inner.position(key) - geometry_.outer.position(row % plan_.source.max_query);
    const auto slope = hn::Set(d, head.alibi_slope);
    const auto cap = hn::Set(d, plan_.score.softcap);
    for (int64_t j = 0; j < count; j += kLanes) {
      auto score = hn::Load(d, scores_[row] + j);
      if (plan_.score.softcap > 0) {
        score = hn::Mul(cap, tanh_f32(d, score));
      }
      const auto distance = hn::Abs(hn::Iota(di, clamp_position(ahead + j)));
      score = hn::NegMulAdd(slope, hn::ConvertTo(d, distance), score);
      hn::Store(score, d, scores_[row] + j);
    }
  }

  // Replaces scores of a row by exp2(unit score - largest), updates largest and sum, leaves
  // the factor by which what was summed before shrinks.
  void soften(int64_t row, int64_t key, int64_t count) {
    const Lanes d;
    float* scores = scores_[row];
    const int64_t query = row % plan_.source.max_query;
    // Keys of the block that the query sees.
    int64_t from = std::clamp<int64_t>(query + geometry_.low + shift_ - key, 0, count);
    int64_t to = std::clamp<int64_t>(query + geometry_.high + shift_ + 1 - key, 0, count);
    to = query < geometry_.outer.count ? std::max(from, to) : from;
    const int64_t padded = (count + kDepthGroup - 1) / kDepthGroup * kDepthGroup;
    constexpr float kHidden = -std::numeric_limits<float>::infinity();
    std::fill(scores, scores + from, kHidden);
    std::fill(scores + to, scores + padded, kHidden);
    auto top = hn::Set(d, kHidden);
    for (int64_t c = 0; c < padded; c += kLanes) {
      top = hn::Max(top, hn::Load(d, scores + c));
    }
    const auto unit = hn::Set(d, plan_.score.unit);
    const auto largest = hn::Set(d, largest_[row]);
    top = hn::Max(largest, hn::Mul(hn::MaxOfLanes(d, top), unit));
    const auto factor = exp2_f32(d, hn::Sub(largest, top));
    auto total = hn::Mul(factor, hn::Load(d, totals_[row]));
    for (int64_t c = 0; c < padded; c += kLanes) {
      const auto p = exp2_f32(d, hn::MulSub(hn::Load(d, scores + c), unit, top));
      hn::Store(p, d, scores + c);
      total = hn::Add(total, p);
    }
    hn::Store(total, d, totals_[row]);
    factors_[row] = hn::GetLane(factor);
    largest_[row] = hn::GetLane(top);
  }

  void add(int64_t count, RowPointers& values, NextRows next) {
    if (value_format_.converted) {
      convert_rows(value_rows_.dtype, plan_.value_dim, plan_.value_padded, count, values_, values);
    }
    for_served_rows([&](int64_t row, auto rows) HWY_ATTR {
      constexpr int kRows = decltype(rows)::value;
      const ValueRows of = {out_ + row * plan_.value_padded, plan_.value_padded, factors_ + row,
                            scores_[row], kDecodeBlock};
      const int64_t pieces = value_format_.pieces;
      switch (value_format_.form) {
        case RowForm::f32:
          add_values<StoredF32, kRows>(of, values, count, pieces, next);
          break;
        case RowForm::f16:
          add_values<StoredF16, kRows>(of, values, count, pieces, next);
          break;
        case RowForm::bf16:
        case RowForm::pairs:
          add_values<StoredBf16, kRows>(of, values, count, 2 * pieces, next);
          break;
      }
    });
    next.fetch_rest();
  }

  const DecodePlan& plan_;
  int32_t sequence_;
  int32_t key_head_;
  SequenceRows lengths_;
  HeadGeometry geometry_;
  CpuRows key_rows_;
  CpuRows value_rows_;
  RowFormat key_format_;
  RowFormat value_format_;
  int64_t shift_;   // of the outer side's positions to the inner's
  int64_t first_;   // key that some query sees
  int64_t last_;    // behind the last one
  float* queries_;  // (rows, D)
  float* keys_;     // (block, D), if they are converted
  float* values_;   // (block, E)
  float* out_;      // (rows, E)
  float* largest_;  // (rows)
  float* sum_;      // (rows)
  HWY_ALIGN float scores_[kDecodeRows][kDecodeBlock];
  HWY_ALIGN float totals_[kDecodeRows][kLanes];  // sums of the lanes
  float factors_[kDecodeRows];
};

}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#endif
