// The two products of decoding: a few rows of q with keys, and of weights with values, each row of
// K and V read once from where it lies for all of them. Included once per target.
//
// What a 64-byte line of the cache costs an AVX-512 core that serves R rows (Zen 4: one
// multiply-add of 16 lanes a cycle): R in f32; R for keys in pairs of bf16; 2 R and the widening
// for values in bf16. The sums of lanes, 2.8 instructions a (row, key), run on other ports.
// bench/results/2026-11-27-attention-cpu.md has the count beside the measured rates.
#if defined(FLASHLOOM_OPS_ATTENTION_CPU_DECODE_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHLOOM_OPS_ATTENTION_CPU_DECODE_PRODUCTS_INL_H_
#undef FLASHLOOM_OPS_ATTENTION_CPU_DECODE_PRODUCTS_INL_H_
#else
#define FLASHLOOM_OPS_ATTENTION_CPU_DECODE_PRODUCTS_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "flashloom/ops/attention/cpu/decode_rows-inl.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {

// Rows served from one load. A step takes a quad of keys: four accumulators a row, the rows'
// vectors and a key's fill the 16 vector registers of AVX2 (32 of AVX-512 and NEON). More keys a
// step would read memory further out of order.
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
constexpr int kServedRows = 4;
#else
constexpr int kServedRows = 2;
#endif

/// Rows of memory that will be read, fetched line by line in their order while others are worked
/// on.
///
/// The rows of the next phase go to the second-level cache (kLevel 2), whose queue of misses is
/// longer than the first level's: on two Zen 4 cores whose neighbours left torch.sum 18 GB/s, that
/// gave 12 to 24 GB/s where fetching into the first level gave 5 to 14. A step reads its four keys
/// side by side, which the hardware's prefetchers do not follow: fetching the next step's rows in
/// order into the first level makes up for some of it (reading alone, one core: side by side 21, so
/// 24, in order 28).
template <int kLevel>
class FetchedRows {
 public:
  FetchedRows(const std::byte* const* rows, int64_t count, int64_t bytes)
      : row_(rows), bytes_(bytes), left_(count * ((bytes + kLine - 1) / kLine)) {}

  /// The next line, if there is one.
  HWY_INLINE void fetch() {
    constexpr int kRead = 0;
    constexpr int kLocality = 4 - kLevel;
    if (left_ > 0) {
      --left_;
      __builtin_prefetch(*row_ + offset_, kRead, kLocality);
      offset_ += kLine;
      if (offset_ >= bytes_) {
        offset_ = 0;
        ++row_;
      }
    }
  }

  HWY_INLINE void fetch_rest() {
    while (left_ > 0) {
      fetch();
    }
  }

 private:
  static constexpr int64_t kLine = 64;

  const std::byte* const* row_;
  int64_t bytes_;
  int64_t left_;  // lines
  int64_t offset_ = 0;
};

using NextRows = FetchedRows<2>;

/// Whether a step of R rows fetches the next step's keys: with one row, 18 became 22 GB/s in f32
/// and 20 became 22 in bf16; with three or four, computing pays as much as memory gains.
template <int R>
constexpr bool kAhead = R <= 2;

/// Each block of four lanes holds a part of the sums of a, b, c and e.
HWY_INLINE Vector sum_quad(Vector a, Vector b, Vector c, Vector e) {
#if HWY_TARGET == HWY_SCALAR
  static_cast<void>(b);
  static_cast<void>(c);
  static_cast<void>(e);
  return a;
#else
  const Lanes d;
  const hn::Repartition<double, Lanes> dd;
  const auto ab =
      hn::BitCast(dd, hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b)));
  const auto ce =
      hn::BitCast(dd, hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e)));
  return hn::Add(hn::BitCast(d, hn::InterleaveLower(dd, ab, ce)),
                 hn::BitCast(d, hn::InterleaveUpper(dd, ab, ce)));
#endif
}

#if HWY_TARGET != HWY_SCALAR
/// The sum of a's halves, then of b's.
HWY_INLINE Vector sum_halves(Vector a, Vector b) {
  const Lanes d;
  return hn::Add(hn::ConcatUpperLower(d, b, a), hn::ConcatLowerUpper(d, b, a));
}

/// In each half the sum of a's two blocks of four lanes, then of b's.
HWY_INLINE Vector sum_blocks(Vector a, Vector b) {
  return hn::Add(hn::OddEvenBlocks(b, a), hn::SwapAdjacentBlocks(hn::OddEvenBlocks(a, b)));
}
#endif

/// scores[row][key] = scale x the sum of the lanes of sums[row][key], four keys. The bits do not
/// depend on a row's place.
template <int R, int kCount = kLanes>
HWY_INLINE void store_scores(Vector (&sums)[R][4], float scale, float* HWY_RESTRICT scores,
                             int64_t stride) {
  const Lanes d;
  const auto factor = hn::Set(d, scale);
#if HWY_TARGET == HWY_SCALAR
  for (int r = 0; r < R; ++r) {
    for (int i = 0; i < 4; ++i) {
      scores[r * stride + i] = hn::GetLane(hn::Mul(sums[r][i], factor));
    }
  }
#else
  Vector quads[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    quads[r] = sum_quad(sums[r][0], sums[r][1], sums[r][2], sums[r][3]);
  }
  constexpr int kLast = R - 1;
  const hn::FixedTag<float, 4> d4;
  if constexpr (kCount == 4) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      hn::StoreU(hn::Mul(quads[r], factor), d, scores + r * stride);
    }
  } else if constexpr (kCount == 8) {
#pragma GCC unroll 4
    for (int r = 0; r < R; r += 2) {
      const auto two = hn::Mul(sum_halves(quads[r], quads[std::min(r + 1, kLast)]), factor);
      hn::StoreU(hn::LowerHalf(d4, two), d4, scores + r * stride);
      if (r < kLast) {
        hn::StoreU(hn::UpperHalf(d4, two), d4, scores + (r + 1) * stride);
      }
    }
  } else {
    static_assert(kCount == 16 && R <= 4);
    const hn::FixedTag<float, kCount / 2> d8;
    const auto four = hn::Mul(sum_blocks(sum_halves(quads[0], quads[std::min(2, kLast)]),
                                         sum_halves(quads[std::min(1, kLast)], quads[kLast])),
                              factor);
    const auto low = hn::LowerHalf(d8, four);
    const auto high = hn::UpperHalf(d8, four);
    hn::StoreU(hn::LowerHalf(d4, low), d4, scores);
    if constexpr (R > 1) {
      hn::StoreU(hn::UpperHalf(d4, low), d4, scores + stride);
    }
    if constexpr (R > 2) {
      hn::StoreU(hn::LowerHalf(d4, high), d4, scores + 2 * stride);
    }
    if constexpr (R > 3) {
      hn::StoreU(hn::UpperHalf(d4, high), d4, scores + 3 * stride);
    }
  }
#endif
}

/// scores[r][j] = scale q[r] . keys[j] of R rows; keys in whole steps, so up to 3 more than
/// `count`.
template <class Stored, int R>
HWY_NOINLINE void score_keys(const float* HWY_RESTRICT q, int64_t q_stride, const RowPointers& keys,
                             int64_t count, int64_t pieces, float scale, NextRows& following,
                             float* HWY_RESTRICT scores, int64_t stride) {
  const Lanes d;
  constexpr int kKeys = 4;
  constexpr int kVectors = Stored::kVectors;
  NextRows next = following;
  [[maybe_unused]] FetchedRows<1> ahead(keys.data() + kKeys, count - kKeys,
                                        pieces * Stored::kBytes);
  for (int64_t j = 0; j < count; j += kKeys) {
    const std::byte* const* rows = keys.data() + j;
    Vector sums[R][4];
    for (auto& quad : sums) {
      for (auto& sum : quad) {
        sum = hn::Zero(d);
      }
    }
    for (int64_t piece = 0; piece < pieces; ++piece) {
      Vector x[R][kVectors];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
        for (int c = 0; c < kVectors; ++c) {
          x[r][c] = hn::Load(d, q + r * q_stride + (piece * kVectors + c) * kLanes);
        }
      }
      const int64_t offset = piece * Stored::kBytes;
#pragma GCC unroll 16
      for (int n = 0; n < kKeys; ++n) {
        Vector key[kVectors];
        Stored::load(rows[n] + offset, key);
        next.fetch();
        if constexpr (kAhead<R>) {
          ahead.fetch();
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          Vector& sum = sums[r][n];
#pragma GCC unroll 2
          for (int c = 0; c < kVectors; ++c) {
            sum = hn::MulAdd(x[r][c], key[c], sum);
          }
        }
      }
    }
    store_scores<R>(sums, scale, scores + j, stride);
  }
  following = next;
}

#if HWY_TARGET == HWY_AVX3
/// score_keys() of bf16 as it is stored, q too: two of the depth a lane, exact products added in
/// f32. Its instructions are those of machines on which bf16_pairs_available().
template <int R>
__attribute__((noinline, target("avx512bf16"))) void score_key_pairs(
    const float* HWY_RESTRICT q, int64_t q_stride, const RowPointers& keys, int64_t count,
    int64_t pieces, float scale, NextRows& following, float* HWY_RESTRICT scores, int64_t stride) {
  constexpr int kKeys = 4;
  NextRows next = following;
  [[maybe_unused]] FetchedRows<1> ahead(keys.data() + kKeys, count - kKeys,
                                        pieces * StoredBf16::kBytes);
  for (int64_t j = 0; j < count; j += kKeys) {
    const std::byte* const* rows = keys.data() + j;
    __m512 sums[R][4];
#pragma GCC unroll 4
    for (int n = 0; n < R; ++n) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        sums[n][i] = _mm512_setzero_ps();
      }
    }
    for (int64_t piece = 0; piece < pieces; ++piece) {
      __m512bh x[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        x[r] = (__m512bh)_mm512_load_ps(q + r * q_stride + piece * kLanes);
      }
      const int64_t offset = piece * StoredBf16::kBytes;
#pragma GCC unroll 16
      for (int n = 0; n < kKeys; ++n) {
        const auto key = (__m512bh)_mm512_loadu_si512(rows[n] + offset);
        next.fetch();
        if constexpr (kAhead<R>) {
          ahead.fetch();
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          __m512& sum = sums[r][n];
          sum = _mm512_dpbf16_ps(sum, x[r], key);
        }
      }
    }
    Vector results[R][4];
#pragma GCC unroll 4
    for (int n = 0; n < R; ++n) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        results[n][i] = Vector{sums[n][i]};
      }
    }
    store_scores<R>(results, scale, scores + j, stride);
  }
  following = next;
}
#endif

/// What add_values() does with R rows of weights (row, key) and of out (row, E).
struct ValueRows {
  float* out;
  int64_t out_stride;
  const float* factors;  // of what out held
  const float* weights;
  int64_t weight_stride;
};

/// out[r] = factors[r] out[r] + sum over keys of weights[r][key] values[key], for C vectors of a
/// row from `first` on, in registers over all keys.
template <class Stored, int R, int C>
HWY_INLINE void add_value_slice(const ValueRows& of, const RowPointers& values, int64_t count,
                                int64_t first, NextRows& following) {
  const Lanes d;
  constexpr int kVectors = Stored::kVectors;
  constexpr int kPieces = C / kVectors;
  const int64_t offset = first / kVectors * Stored::kBytes;
  float* HWY_RESTRICT out = of.out + first * kLanes;
  Vector sums[R][C];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    const auto factor = hn::Set(d, of.factors[r]);
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      sums[r][c] = hn::Mul(hn::Load(d, out + r * of.out_stride + c * kLanes), factor);
    }
  }
  NextRows next = following;
  for (int64_t j = 0; j < count; ++j) {
    const std::byte* row = values[static_cast<size_t>(j)] + offset;
    Vector weights[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      weights[r] = hn::Set(d, of.weights[r * of.weight_stride + j]);
    }
#pragma GCC unroll 8
    for (int n = 0; n < kPieces; ++n) {
      Vector value[kVectors];
      Stored::load(row + n * Stored::kBytes, value);
      next.fetch();
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
        for (int c = 0; c < kVectors; ++c) {
          sums[r][n * kVectors + c] = hn::MulAdd(weights[r], value[c], sums[r][n * kVectors + c]);
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      hn::Store(sums[r][c], d, out + r * of.out_stride + c * kLanes);
    }
  }
  following = next;
}

/// All slices of `vectors` vectors.
template <class Stored, int R>
HWY_NOINLINE void add_values(const ValueRows& of, const RowPointers& values, int64_t count,
                             int64_t vectors, NextRows& next) {
  int64_t first = 0;
  if constexpr (8 * R <= 4 * kServedRows) {
    for (; first + 8 <= vectors; first += 8) {
      add_value_slice<Stored, R, 8>(of, values, count, first, next);
    }
  }
  for (; first + 4 <= vectors; first += 4) {
    add_value_slice<Stored, R, 4>(of, values, count, first, next);
  }
  for (; first + 2 <= vectors; first += 2) {
    add_value_slice<Stored, R, 2>(of, values, count, first, next);
  }
  if constexpr (Stored::kVectors == 1) {
    for (; first < vectors; ++first) {
      add_value_slice<Stored, R, 1>(of, values, count, first, next);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#endif
