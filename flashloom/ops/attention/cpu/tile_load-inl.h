// Rows of the caller's memory as attention tiles and back. Included once per target.
#if defined(FLASHLOOM_OPS_ATTENTION_CPU_TILE_LOAD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHLOOM_OPS_ATTENTION_CPU_TILE_LOAD_INL_H_
#undef FLASHLOOM_OPS_ATTENTION_CPU_TILE_LOAD_INL_H_
#else
#define FLASHLOOM_OPS_ATTENTION_CPU_TILE_LOAD_INL_H_
#endif

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "flashloom/ops/attention/cpu/attention_cpu_problem.h"
#include "flashloom/ops/attention/cpu/tile_math-inl.h"
#include "flashloom/ops/vector_math/storage-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {

/// A row of any storage as `padded` floats, zeros behind `width`.
inline void load_row(const std::byte* row, DType dtype, int64_t width, int64_t padded,
                     float* HWY_RESTRICT out) {
  const auto count = row == nullptr ? size_t{0} : static_cast<size_t>(width);
  if (count == 0) {
    width = 0;
  } else if (dtype == DType::f32) {
    std::memcpy(out, row, count * sizeof(float));
  } else if (dtype == DType::bf16) {
    const auto* in = reinterpret_cast<const bf16*>(row);
    for_vectors(count,
                [&](auto d, size_t i) HWY_ATTR { hn::StoreU(load_f32(d, in + i), d, out + i); });
  } else {
    const auto* in = reinterpret_cast<const f16*>(row);
    for_vectors(count, [&](auto d, size_t i) HWY_ATTR {
      const hn::Rebind<hwy::float16_t, decltype(d)> d16;
      const auto half = hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(in + i));
      hn::StoreU(hn::PromoteTo(d, half), d, out + i);
    });
  }
  std::memset(out + width, 0, static_cast<size_t>(padded - width) * sizeof(float));
}

/// Writes `width` floats as any storage; with `accumulate` (f32 only) adds.
inline void store_row(std::byte* row, DType dtype, int64_t width, const float* HWY_RESTRICT values,
                      bool accumulate) {
  const auto count = static_cast<size_t>(width);
  if (dtype == DType::f32) {
    auto* out = reinterpret_cast<float*>(row);
    if (!accumulate) {
      std::memcpy(out, values, count * sizeof(float));
      return;
    }
    for_vectors(count, [&](auto d, size_t i) HWY_ATTR {
      hn::StoreU(hn::Add(hn::LoadU(d, out + i), hn::LoadU(d, values + i)), d, out + i);
    });
  } else if (dtype == DType::bf16) {
    auto* out = reinterpret_cast<bf16*>(row);
    for_vectors(
        count, [&](auto d, size_t i) HWY_ATTR { store_f32(d, hn::LoadU(d, values + i), out + i); });
  } else {
    auto* out = reinterpret_cast<f16*>(row);
    for (size_t i = 0; i < count; ++i) {
      out[i] = f16(values[i]);
    }
  }
}

#if HWY_TARGET != HWY_SCALAR
/// Transposes 4 x 4 floats.
HWY_INLINE void transpose_4x4(const float* in, int64_t in_stride, float* out, int64_t out_stride) {
  const hn::FixedTag<float, 4> d;
  const hn::FixedTag<double, 2> dd;
  const auto a = hn::LoadU(d, in);
  const auto b = hn::LoadU(d, in + in_stride);
  const auto c = hn::LoadU(d, in + 2 * in_stride);
  const auto e = hn::LoadU(d, in + 3 * in_stride);
  const auto ab_low = hn::BitCast(dd, hn::InterleaveLower(d, a, b));
  const auto ab_high = hn::BitCast(dd, hn::InterleaveUpper(d, a, b));
  const auto ce_low = hn::BitCast(dd, hn::InterleaveLower(d, c, e));
  const auto ce_high = hn::BitCast(dd, hn::InterleaveUpper(d, c, e));
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(dd, ab_low, ce_low)), d, out);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(dd, ab_low, ce_low)), d, out + out_stride);
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(dd, ab_high, ce_high)), d, out + 2 * out_stride);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(dd, ab_high, ce_high)), d, out + 3 * out_stride);
}

#endif

/// out[column][row] = in[row][column], both sizes multiples of 4 (but in scalar code).
inline void transpose(const float* in, int64_t rows, int64_t columns, float* out) {
#if HWY_TARGET == HWY_SCALAR
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      out[c * rows + r] = in[r * columns + c];
    }
  }
#else
  for (int64_t r = 0; r < rows; r += 4) {
    for (int64_t c = 0; c < columns; c += 4) {
      transpose_4x4(in + r * columns + c, columns, out + c * rows + r, rows);
    }
  }
#endif
}

/// Rows [first, first + count) of `rows` as a grouped tile of `tile_rows` rows, zeros behind them
/// up to a multiple of kTileRows.
inline void load_grouped(const CpuRows& rows, int64_t first, int64_t count, int64_t tile_rows,
                         int64_t width, int64_t padded, float* HWY_RESTRICT row,
                         float* HWY_RESTRICT out) {
  const Lanes d;
  for (int64_t i = 0; i < tile_rows; ++i) {
    if (i < count) {
      const float* values = row;
      const std::byte* source = rows.row(first + i);
      if (source != nullptr && rows.dtype == DType::f32 && width == padded) {
        values = reinterpret_cast<const float*>(source);
      } else {
        load_row(source, rows.dtype, width, padded, row);
      }
      for (int64_t g = 0; g < padded / kDepthGroup; ++g) {
        float* HWY_RESTRICT to = out + (g * tile_rows + i) * kDepthGroup;
        for (int c = 0; c < kDepthGroup; c += kLanes) {
          hn::Store(hn::LoadU(d, values + g * kDepthGroup + c), d, to + c);
        }
      }
    } else if (i < (count + kMaxTileRows - 1) / kMaxTileRows * kMaxTileRows) {
      for (int64_t g = 0; g < padded / kDepthGroup; ++g) {
        std::memset(out + (g * tile_rows + i) * kDepthGroup, 0, kDepthGroup * sizeof(float));
      }
    }
  }
}

/// Rows of bf16 two by two: (depth / 16, tile rows / 2, 16) of pairs (row 2 i, row 2 i + 1), zeros
/// behind the last up to a multiple of kMaxTileRows rows.
inline void load_row_pairs(const CpuRows& rows, int64_t first, int64_t count, int64_t tile_rows,
                           int64_t width, int64_t padded, float* HWY_RESTRICT out) {
  // Halves of a vector of f32; scalar code takes one at a time.
  const hn::RebindToUnsigned<Lanes> d32;
  const hn::Rebind<uint16_t, Lanes> d16;
  HWY_ALIGN uint16_t pieces[2][kDepthGroup];
  const int64_t end = (count + kMaxTileRows - 1) / kMaxTileRows * kMaxTileRows;
  for (int64_t i = 0; i < std::min(end, tile_rows); i += 2) {
    const std::byte* sources[2] = {i < count ? rows.row(first + i) : nullptr,
                                   i + 1 < count ? rows.row(first + i + 1) : nullptr};
    for (int64_t g = 0; g < padded; g += kDepthGroup) {
      const int64_t there = std::clamp<int64_t>(width - g, 0, kDepthGroup);
      for (int n = 0; n < 2; ++n) {
        std::memset(pieces[n], 0, sizeof(pieces[n]));
        if (sources[n] != nullptr) {
          std::memcpy(pieces[n], sources[n] + 2 * g, static_cast<size_t>(2 * there));
        }
      }
      float* HWY_RESTRICT to = out + (g * tile_rows / 2) + i / 2 * kDepthGroup;
      for (int c = 0; c < kDepthGroup; c += kLanes) {
        const auto even = hn::PromoteTo(d32, hn::LoadU(d16, pieces[0] + c));
        const auto odd = hn::PromoteTo(d32, hn::LoadU(d16, pieces[1] + c));
        hn::Store(hn::Or(even, hn::ShiftLeft<16>(odd)), d32, reinterpret_cast<uint32_t*>(to) + c);
      }
    }
  }
}

/// Rows [first, first + count) as a panel of `width_lanes` lanes times `scale`, zeros behind them.
inline void load_panel(const CpuRows& rows, int64_t first, int64_t count, int64_t width_lanes,
                       int64_t width, int64_t padded, float scale, float* HWY_RESTRICT temporary,
                       float* HWY_RESTRICT out) {
  const Lanes d;
  for (int64_t i = 0; i < width_lanes; ++i) {
    float* HWY_RESTRICT row = temporary + i * padded;
    if (i >= count) {
      std::memset(row, 0, static_cast<size_t>(padded) * sizeof(float));
      continue;
    }
    load_row(rows.row(first + i), rows.dtype, width, padded, row);
    if (scale == 1) {  // pairs of bf16 are not numbers: their bits must stay
      continue;
    }
    const auto factor = hn::Set(d, scale);
    for (int64_t c = 0; c < padded; c += kLanes) {
      hn::Store(hn::Mul(hn::Load(d, row + c), factor), d, row + c);
    }
  }
  transpose(temporary, width_lanes, padded, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#endif
