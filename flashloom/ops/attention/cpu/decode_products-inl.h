// The two products of decoding: a few rows of q with keys, and of weights with values, each row of
// K and V read once from where it lies for all of them. Included once per target.
//
// What a 64-byte line of the cache costs an AVX-512 core that serves R rows (Zen 4: one
// multiply-add of 16 lanes a cycle): R in f32; R for keys in pairs of bf16; 2 R and the widening
// for values in bf16. The sums of lanes, 2.8 instructions a (row, key), run on other ports.
// docs/attention.md has the count beside the measured rates.
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

// Rows served from one load, and quads of keys times rows in a step: four accumulators a quad, the
// rows' vectors and a key's fill the 16 vector registers of AVX2 (32 of AVX-512 and NEON).
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
constexpr int kServedRows = 4;
constexpr int kStepQuads = 4;
#else
constexpr int kServedRows = 2;
constexpr int kStepQuads = 2;
#endif

/// Quads of keys that a step takes with R rows.
template <int R>
constexpr int kKeyQuads = std::max(1, kStepQuads / R);

/// Rows of memory that the next phase will read, fetched while this one computes: as many lines as
/// it reads itself, so that memory works all the time. They are fetched into the second-level
/// cache, whose queue of misses is longer than the first level's: on two Zen 4 cores whose
/// neighbours left torch.sum 18 GB/s, that gave 12 to 24 GB/s where fetching into the first level
/// gave 5 to 14.
struct NextRows {
  const RowPointers* rows;
  int64_t bytes;  // of a row

  HWY_INLINE void fetch(int64_t row, int64_t offset) const {
    constexpr int kRead = 0;
    constexpr int kSecondLevel = 2;
    __builtin_prefetch((*rows)[static_cast<size_t>(row)] + offset, kRead, kSecondLevel);
  }

  /// The nearest offset in a row.
  int64_t within(int64_t offset) const { return std::min(offset, bytes - 1); }

  /// Lines of rows [row, row + count) from `offset` on.
  HWY_INLINE void fetch_rest(int64_t row, int64_t count, int64_t offset) const {
    for (; offset < bytes; offset += 64) {
      for (int64_t n = 0; n < count; ++n) {
        fetch(row + n, offset);
      }
    }
  }
};

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

/// scores[row][key] = scale x the sum of the lanes of sums[quad][.], where quad n holds keys
/// 4 (n % Q), ... of row n / Q. The bits do not depend on a quad's place.
template <int R, int Q, int kCount = kLanes>
HWY_INLINE void store_scores(Vector (&sums)[R * Q][4], float scale, float* HWY_RESTRICT scores,
                             int64_t stride) {
  const Lanes d;
  const auto factor = hn::Set(d, scale);
  constexpr int kQuads = R * Q;
  const auto place = [&](int quad) { return scores + quad / Q * stride + quad % Q * 4; };
#if HWY_TARGET == HWY_SCALAR
  for (int n = 0; n < kQuads; ++n) {
    for (int i = 0; i < 4; ++i) {
      place(n)[i] = hn::GetLane(hn::Mul(sums[n][i], factor));
    }
  }
#else
  Vector quads[kQuads];
#pragma GCC unroll 4
  for (int n = 0; n < kQuads; ++n) {
    quads[n] = sum_quad(sums[n][0], sums[n][1], sums[n][2], sums[n][3]);
  }
  constexpr int kLast = kQuads - 1;
  const hn::FixedTag<float, 4> d4;
  if constexpr (kCount == 4) {
#pragma GCC unroll 4
    for (int n = 0; n < kQuads; ++n) {
      hn::StoreU(hn::Mul(quads[n], factor), d, place(n));
    }
  } else if constexpr (kCount == 8) {
#pragma GCC unroll 4
    for (int n = 0; n < kQuads; n += 2) {
      const auto two = hn::Mul(sum_halves(quads[n], quads[std::min(n + 1, kLast)]), factor);
      hn::StoreU(hn::LowerHalf(d4, two), d4, place(n));
      if (n < kLast) {
        hn::StoreU(hn::UpperHalf(d4, two), d4, place(n + 1));
      }
    }
  } else {
    static_assert(kCount == 16 && kQuads <= 4);
    const hn::FixedTag<float, kCount / 2> d8;
    const auto four = hn::Mul(sum_blocks(sum_halves(quads[0], quads[std::min(2, kLast)]),
                                         sum_halves(quads[std::min(1, kLast)], quads[kLast])),
                              factor);
    if constexpr (Q == 4) {
      hn::StoreU(four, d, place(0));
      return;
    }
    const auto low = hn::LowerHalf(d8, four);
    const auto high = hn::UpperHalf(d8, four);
    if constexpr (Q == 2) {
      hn::StoreU(low, d8, place(0));
      hn::StoreU(high, d8, place(2));
    } else {
      hn::StoreU(hn::LowerHalf(d4, low), d4, place(0));
      hn::StoreU(hn::UpperHalf(d4, low), d4, place(1));
      hn::StoreU(hn::LowerHalf(d4, high), d4, place(2));
      if constexpr (kQuads == 4) {
        hn::StoreU(hn::UpperHalf(d4, high), d4, place(3));
      }
    }
  }
#endif
}

/// scores[r][j] = scale q[r] . keys[j] of R rows; keys in whole steps, so up to 15 more than
/// `count`.
template <class Stored, int R>
HWY_NOINLINE void score_keys(const float* HWY_RESTRICT q, int64_t q_stride, const RowPointers& keys,
                             int64_t count, int64_t pieces, float scale, const NextRows& next,
                             float* HWY_RESTRICT scores, int64_t stride) {
  const Lanes d;
  constexpr int kQuads = kKeyQuads<R>;
  constexpr int kKeys = 4 * kQuads;
  constexpr int kVectors = Stored::kVectors;
  for (int64_t j = 0; j < count; j += kKeys) {
    const std::byte* const* rows = keys.data() + j;
    Vector sums[R * kQuads][4];
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
      const int64_t ahead = next.within(offset);
#pragma GCC unroll 16
      for (int n = 0; n < kKeys; ++n) {
        Vector key[kVectors];
        Stored::load(rows[n] + offset, key);
        next.fetch(j + n, ahead);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          Vector& sum = sums[r * kQuads + n / 4][n % 4];
#pragma GCC unroll 2
          for (int c = 0; c < kVectors; ++c) {
            sum = hn::MulAdd(x[r][c], key[c], sum);
          }
        }
      }
    }
    next.fetch_rest(j, kKeys, pieces * Stored::kBytes);
    store_scores<R, kQuads>(sums, scale, scores + j, stride);
  }
}

#if HWY_TARGET == HWY_AVX3
/// score_keys() of bf16 as it is stored, q too: two of the depth a lane, exact products added in
/// f32. Its instructions are those of machines on which bf16_pairs_available().
template <int R>
__attribute__((noinline, target("avx512bf16"))) void score_key_pairs(
    const float* HWY_RESTRICT q, int64_t q_stride, const RowPointers& keys, int64_t count,
    int64_t pieces, float scale, const NextRows& next, float* HWY_RESTRICT scores, int64_t stride) {
  constexpr int kQuads = kKeyQuads<R>;
  constexpr int kKeys = 4 * kQuads;
  for (int64_t j = 0; j < count; j += kKeys) {
    const std::byte* const* rows = keys.data() + j;
    __m512 sums[R * kQuads][4];
#pragma GCC unroll 4
    for (int n = 0; n < R * kQuads; ++n) {
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
      const int64_t ahead = next.within(offset);
#pragma GCC unroll 16
      for (int n = 0; n < kKeys; ++n) {
        const auto key = (__m512bh)_mm512_loadu_si512(rows[n] + offset);
        next.fetch(j + n, ahead);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          __m512& sum = sums[r * kQuads + n / 4][n % 4];
          sum = _mm512_dpbf16_ps(sum, x[r], key);
        }
      }
    }
    next.fetch_rest(j, kKeys, pieces * StoredBf16::kBytes);
    Vector results[R * kQuads][4];
#pragma GCC unroll 4
    for (int n = 0; n < R * kQuads; ++n) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        results[n][i] = Vector{sums[n][i]};
      }
    }
    store_scores<R, kQuads>(results, scale, scores + j, stride);
  }
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
                                int64_t first, const NextRows& next, bool last) {
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
  int64_t ahead[kPieces];
  for (int n = 0; n < kPieces; ++n) {
    ahead[n] = next.within(offset + n * Stored::kBytes);
  }
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
      next.fetch(j, ahead[n]);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
        for (int c = 0; c < kVectors; ++c) {
          sums[r][n * kVectors + c] = hn::MulAdd(weights[r], value[c], sums[r][n * kVectors + c]);
        }
      }
    }
    if (last) {
      next.fetch_rest(j, 1, offset + kPieces * Stored::kBytes);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      hn::Store(sums[r][c], d, out + r * of.out_stride + c * kLanes);
    }
  }
}

/// All slices of `vectors` vectors.
template <class Stored, int R>
HWY_NOINLINE void add_values(const ValueRows& of, const RowPointers& values, int64_t count,
                             int64_t vectors, const NextRows& next) {
  int64_t first = 0;
  if constexpr (8 * R <= 4 * kStepQuads) {
    for (; first + 8 <= vectors; first += 8) {
      add_value_slice<Stored, R, 8>(of, values, count, first, next, first + 8 == vectors);
    }
  }
  for (; first + 4 <= vectors; first += 4) {
    add_value_slice<Stored, R, 4>(of, values, count, first, next, first + 4 == vectors);
  }
  for (; first + 2 <= vectors; first += 2) {
    add_value_slice<Stored, R, 2>(of, values, count, first, next, first + 2 == vectors);
  }
  if constexpr (Stored::kVectors == 1) {
    for (; first < vectors; ++first) {
      add_value_slice<Stored, R, 1>(of, values, count, first, next, first + 1 == vectors);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#endif
