// Which pairs of a panel exist. Included once per target.
#if defined(FLASHLOOM_OPS_ATTENTION_CPU_TILE_MASK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHLOOM_OPS_ATTENTION_CPU_TILE_MASK_INL_H_
#undef FLASHLOOM_OPS_ATTENTION_CPU_TILE_MASK_INL_H_
#else
#define FLASHLOOM_OPS_ATTENTION_CPU_TILE_MASK_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "flashloom/ops/attention/cpu/tile_math-inl.h"
#include "flashloom/ops/attention/patterns/tile_iterator.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {

/// The inner rows of a tile that a panel of outer rows sees.
struct PanelRange {
  int64_t first;  // within the tile; multiples of the register tile but for the hidden rows
  int64_t last;
  bool masked;                      // some pair of the range is hidden
  int64_t lanes = 0;                // of the panel that exist
  int64_t low = -kMaxSequence * 8;  // row less lane of visible pairs, as far as a window says
  int64_t high = kMaxSequence * 8;

  /// As if `all` lanes existed and saw every row.
  void see_all(int64_t all) {
    lanes = all;
    low = -kMaxSequence * 8;
    high = kMaxSequence * 8;
  }
};

/// Vectors of a panel.
struct PanelVectors {
  int first;
  int count;

  bool operator==(const PanelVectors&) const = default;
};

/// The vectors with a lane that sees some of the rows [row, row + kTileRows).
inline PanelVectors seeing_vectors(const PanelRange& range, int64_t row) {
  const int64_t first = std::max<int64_t>(row - range.high, 0);
  const int64_t last = std::min(row + kTileRows - range.low, range.lanes);
  if (first >= last) {
    return {0, 0};
  }
  const auto vector = static_cast<int>(first / kLanes);
  return {vector, static_cast<int>((last + kLanes - 1) / kLanes) - vector};
}

/// Calls body(first row, last row, first vector, number of vectors as a constant) for the parts of
/// a range that some vector sees: at the borders of a window a third of a panel may be enough, and
/// a last panel may have few rows. On a Zen 4 core in f32 at D = 64, GFLOP/s of the visible pairs:
/// window 64 from 35 to 42, 128 from 50 to 58, 256 from 62 to 73, causal at 1k from 77 to 81.
template <int NV, class Body>
HWY_INLINE void for_seen_parts(const PanelRange& range, Body body) {
  for (int64_t row = range.first; row < range.last;) {
    const PanelVectors vectors = seeing_vectors(range, row);
    int64_t end = row + kTileRows;
    while (end < range.last && seeing_vectors(range, end) == vectors) {
      end += kTileRows;
    }
    static_assert(NV == 3);
    if (vectors.count == 3) {
      body(row, end, vectors.first, std::integral_constant<int, 3>());
    } else if (vectors.count == 2) {
      body(row, end, vectors.first, std::integral_constant<int, 2>());
    } else if (vectors.count == 1) {
      body(row, end, vectors.first, std::integral_constant<int, 1>());
    }
    row = end;
  }
}

/// `inner_count` rows of the tile from `inner_first` on exist; so do `outer_count` of the panel's.
inline PanelRange panel_range(const HeadGeometry& geometry, uint32_t flags, int64_t outer_first,
                              int64_t outer_count, int64_t inner_first, int64_t inner_count) {
  int64_t first = 0;
  int64_t last = inner_count;
  PanelRange range = {.lanes = outer_count};
  bool masked = false;
  constexpr uint32_t kPairs = kRunPositions | kRunIndex | kRunBlockBits;
  if ((flags & kPairs) != 0) {
    masked = true;
    if (is_affine(geometry)) {
      // inner - outer in [low, high], in rows of the tile and of the panel
      const int64_t shift = geometry.outer.start - geometry.inner.start + outer_first - inner_first;
      const int64_t low = geometry.low + shift;
      const int64_t high = geometry.high + shift;
      range.low = low;
      range.high = high;
      masked = geometry.exclude_self || (flags & kRunBlockBits) != 0 || outer_count - 1 + low > 0 ||
               high < inner_count - 1;
      first = std::clamp<int64_t>(low, 0, inner_count);
      last = std::clamp<int64_t>(outer_count + high, 0, inner_count);
    }
  }
  if (first >= last) {
    return {0, 0, false};
  }
  range.first = first / kTileRows * kTileRows;
  range.last = (last + kTileRows - 1) / kTileRows * kTileRows;
  range.masked = masked || range.last > inner_count;
  return range;
}

inline int32_t clamp_position(int64_t position) {
  return static_cast<int32_t>(
      std::clamp<int64_t>(position, std::numeric_limits<int32_t>::min(), kPaddingPosition));
}

/// Sets hidden pairs of scores (rows [range.first, range.last), W lanes) to -inf.
template <int NV>
void mask_panel(const HeadGeometry& geometry, uint32_t flags, int32_t partial,
                const PanelRange& range, int64_t outer_first, int64_t outer_count,
                int64_t inner_first, int64_t inner_count, float* scores, int64_t stride) {
  const Lanes d;
  const hn::RebindToSigned<Lanes> di;
  constexpr int kWidth = NV * kLanes;
  HWY_ALIGN int32_t positions[kWidth];
  HWY_ALIGN int32_t buckets[kWidth];
  for (int64_t lane = 0; lane < kWidth; ++lane) {
    const bool exists = lane < outer_count;
    positions[lane] = clamp_position(exists ? geometry.outer.position(outer_first + lane)
                                            : int64_t{kPaddingPosition});
    buckets[lane] = exists && geometry.buckets > 0
                        ? bucket_of(geometry.outer, geometry.buckets, outer_first + lane)
                        : -1;
  }
  // Under a window, rows that the whole panel sees need no look.
  int64_t seen_first = 0;
  int64_t seen_last = 0;
  if (is_affine(geometry) && !geometry.exclude_self && (flags & kRunBlockBits) == 0) {
    const int64_t shift = geometry.outer.start - geometry.inner.start + outer_first - inner_first;
    seen_first = std::max(range.first, outer_count - 1 + geometry.low + shift);
    seen_last = std::min({range.last, inner_count, geometry.high + shift + 1});
  }
  const auto hidden = hn::Set(d, -std::numeric_limits<float>::infinity());
  for (int64_t i = range.first; i < range.last; ++i) {
    if (i == seen_first && seen_first < seen_last) {
      i = seen_last - 1;
      continue;
    }
    float* row = scores + i * stride;
    int64_t low = kPaddingPosition;  // positions of outer rows that see this one; empty at first
    int64_t high = low - 1;
    int64_t self = kPaddingPosition;
    int32_t bucket = -1;
    if (i < inner_count) {
      const int64_t position = geometry.inner.position(inner_first + i);
      if (geometry.inner.positions == nullptr || position != kPaddingPosition) {
        low = position - geometry.high;
        high = std::min<int64_t>(position - geometry.low, kPaddingPosition - 1);
      }
      self = geometry.exclude_self ? position : self;
      bucket =
          geometry.buckets > 0 ? bucket_of(geometry.inner, geometry.buckets, inner_first + i) : -1;
    }
    const auto least = hn::Set(di, clamp_position(low));
    const auto most = hn::Set(di, clamp_position(high));
    const auto own = hn::Set(di, clamp_position(self));
    const auto own_bucket = hn::Set(di, bucket);
    for (int c = 0; c < kWidth; c += kLanes) {
      const auto position = hn::Load(di, positions + c);
      auto off = hn::Or(hn::Lt(position, least), hn::Gt(position, most));
      if (geometry.exclude_self) {
        off = hn::Or(off, hn::Eq(position, own));
      }
      if (geometry.buckets > 0) {
        off = hn::Or(off, hn::Ne(hn::Load(di, buckets + c), own_bucket));
      }
      const auto score = hn::Load(d, row + c);
      hn::Store(hn::IfThenElse(hn::RebindMask(d, off), hidden, score), d, row + c);
    }
    if ((flags & kRunBlockBits) != 0 && i < inner_count) {
      for (int64_t lane = 0; lane < std::min<int64_t>(outer_count, kWidth); ++lane) {
        const int64_t outer = (outer_first + lane) % geometry.outer_block;
        const int64_t inner = (inner_first + i) % geometry.inner_block;
        if (!block_bit(geometry, partial, geometry.transposed ? inner : outer,
                       geometry.transposed ? outer : inner)) {
          row[lane] = -std::numeric_limits<float>::infinity();
        }
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#endif
