#include <hwy/cache_control.h>

#include <algorithm>
#include <cstring>

#include "flashloom/ops/linear/gemm_tile.h"

// foreach_target.h compiles this file once a target; it must come before Highway's other headers.
// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "flashloom/ops/linear/gemm_tile_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// clang-format on
#include "flashloom/ops/vector_math/storage-inl.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {
namespace {

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

// The register tile: kPanelRows x 2 vectors of sums. 12 sums, 2 vectors of b and one of a fill the
// 16 registers of AVX2; AVX-512 has 32.
#if HWY_TARGET <= HWY_AVX3
constexpr int64_t kPanelRows = 12;
#else
constexpr int64_t kPanelRows = 6;
#endif
constexpr int64_t kPanelColumns = 2 * static_cast<int64_t>(HWY_LANES(float));

// A panel of b of this depth stays in the first cache (320 x 16 x 4 B = 20 KiB of 32), all panels
// and a block of rows of a in the second (240 + 120 KiB of 512). Measured on Zen 3 over the
// products of SmolLM2-135M at 512 and 1024 tokens, one core, as a share of one call of oneDNN 2.6:
// 0.98 with 96 rows, 0.95 with 126, 0.94 with 192 (rows 6 KiB apart share few sets of the second
// cache).
constexpr int64_t kMaxDepth = 320;
constexpr int64_t kBlockRows = 96;
static_assert(kGemmMaxTileColumns % kPanelColumns == 0 && kBlockRows % kPanelRows == 0);

// At 48 columns packing wins, at 16 not.
constexpr int64_t kFewColumns = 32;

constexpr int64_t kLine = 16;       // floats in a cache line
constexpr int64_t kLinesAhead = 8;  // prefetched while rows of a matrix are copied

#if HWY_TARGET != HWY_SCALAR
// Transposes a corner of 4 rows, `stride` apart, and 4 columns to 4 rows `width` apart.
template <class T>
HWY_INLINE void transpose_4x4(const T* HWY_RESTRICT from, int64_t stride, float* HWY_RESTRICT to,
                              int64_t width) {
  const hn::Full128<float> d;
  const hn::Repartition<double, decltype(d)> pairs;
  const auto r0 = load_f32(d, from);
  const auto r1 = load_f32(d, from + stride);
  const auto r2 = load_f32(d, from + 2 * stride);
  const auto r3 = load_f32(d, from + 3 * stride);
  const auto l01 = hn::BitCast(pairs, hn::InterleaveLower(d, r0, r1));
  const auto u01 = hn::BitCast(pairs, hn::InterleaveUpper(d, r0, r1));
  const auto l23 = hn::BitCast(pairs, hn::InterleaveLower(d, r2, r3));
  const auto u23 = hn::BitCast(pairs, hn::InterleaveUpper(d, r2, r3));
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(pairs, l01, l23)), d, to);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(pairs, l01, l23)), d, to + width);
  hn::StoreU(hn::BitCast(d, hn::InterleaveLower(pairs, u01, u23)), d, to + 2 * width);
  hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(pairs, u01, u23)), d, to + 3 * width);
}
#endif

// Of a panel's row.
template <int64_t kWidth>
HWY_INLINE void copy_row(float* HWY_RESTRICT to, const float* HWY_RESTRICT from) {
  std::memcpy(to, from, kWidth * sizeof(float));
}

template <int64_t kWidth>
HWY_INLINE void copy_row(float* HWY_RESTRICT to, const bf16* HWY_RESTRICT from) {
  for_vectors(kWidth,
              [&](auto d, size_t i) HWY_ATTR { hn::StoreU(load_f32(d, from + i), d, to + i); });
}

// Copies rows [first, first + rows) of an operand, `depth` deep from `start`, into panels of kWidth
// rows each: [panel][depth][kWidth], as f32. Missing rows of the last panel become 0.
template <int64_t kWidth, class T>
HWY_NOINLINE void pack(float* HWY_RESTRICT to, const GemmOperand& from, int64_t first, int64_t rows,
                       int64_t start, int64_t depth) {
  const T* source = from.at<T>(first, start);
  if (from.row_stride == 1) {
    // The outer loop follows memory: a column of lines would fall on few sets of the cache.
    for (int64_t k = 0; k < depth; ++k) {
      const T* line = source + k * from.depth_stride;
      float* out = to + k * kWidth;
      int64_t row = 0;
      if (k + kLinesAhead < depth) {
        for (int64_t i = 0; i < rows; i += kLine) {
          hwy::Prefetch(line + kLinesAhead * from.depth_stride + i);
        }
      }
      for (; row + kWidth <= rows; row += kWidth, out += kWidth * depth) {
        copy_row<kWidth>(out, line + row);
      }
      if (row < rows) {
        for (int64_t i = 0; i < kWidth; ++i) {
          out[i] = row + i < rows ? static_cast<float>(line[row + i]) : 0.0f;
        }
      }
    }
    return;
  }
  for (int64_t row = 0; row < rows; row += kWidth, to += kWidth * depth) {
    const int64_t valid = std::min(kWidth, rows - row);
    const T* corner = source + row * from.row_stride;
    int64_t k = 0;
#if HWY_TARGET != HWY_SCALAR
    if (valid == kWidth) {
      const bool more = row + 2 * kWidth <= rows;
      for (; k + 4 <= depth; k += 4) {
        if (more && k % kLine == 0) {
          for (int64_t i = 0; i < kWidth; ++i) {
            hwy::Prefetch(corner + (kWidth + i) * from.row_stride + k);
          }
        }
        int64_t i = 0;
        for (; i + 4 <= kWidth; i += 4) {
          transpose_4x4(corner + i * from.row_stride + k, from.row_stride, to + k * kWidth + i,
                        kWidth);
        }
        for (; i < kWidth; ++i) {
          for (int64_t j = 0; j < 4; ++j) {
            to[(k + j) * kWidth + i] = static_cast<float>(corner[i * from.row_stride + k + j]);
          }
        }
      }
    }
#endif
    for (; k < depth; ++k) {
      for (int64_t i = 0; i < kWidth; ++i) {
        to[k * kWidth + i] = i < valid ? static_cast<float>(corner[i * from.row_stride + k]) : 0.0f;
      }
    }
  }
}

// The same of a matrix in blocks: a few rows at a time are decoded into scratch that stays in the
// first cache or two.
template <int64_t kWidth>
HWY_NOINLINE void pack_blocks(float* HWY_RESTRICT to, const GemmOperand& from, int64_t first,
                              int64_t rows, int64_t start, int64_t depth) {
  const BlockFormat& format = *from.format;
  const int64_t group = format.group_elements;
  // Whole groups around a block of depth, or around the columns of a tile.
  constexpr int64_t kMaxSpan =
      std::max(kMaxDepth, kGemmMaxTileColumns) + 2 * BlockFormat::kMaxGroup;
  HWY_ALIGN float scratch[kWidth * kMaxSpan];
  const auto whole = [group](int64_t size) { return (size + group - 1) / group * group; };
  if (from.depth_stride == 1) {
    const int64_t skip = start % group;
    const int64_t span = whole(skip + depth);
    const GemmOperand decoded = {scratch + skip, span, 1, DType::f32};
    for (int64_t row = 0; row < rows; row += kWidth, to += kWidth * depth) {
      const int64_t valid = std::min(kWidth, rows - row);
      for (int64_t i = 0; i < valid; ++i) {
        format.decode(from.block_row(first + row + i), start - skip, span, scratch + i * span);
      }
      pack<kWidth, float>(to, decoded, 0, valid, 0, depth);
    }
    return;
  }
  const int64_t skip = first % group;
  const int64_t span = whole(skip + rows);
  for (int64_t k = 0; k < depth; ++k) {
    format.decode(from.block_row(start + k), first - skip, span, scratch);
    const float* line = scratch + skip;
    float* out = to + k * kWidth;
    int64_t row = 0;
    for (; row + kWidth <= rows; row += kWidth, out += kWidth * depth) {
      copy_row<kWidth>(out, line + row);
    }
    if (row < rows) {
      for (int64_t i = 0; i < kWidth; ++i) {
        out[i] = row + i < rows ? line[row + i] : 0.0f;
      }
    }
  }
}

// Where a register tile is added to and stored.
struct Corner {
  float* out;
  int64_t out_stride;
  const float* in;
  int64_t in_stride;
  float alpha;
  float beta;
};

// The last columns of a matrix: a register tile's sums, rows kPanelColumns apart, of which
// `columns` are stored.
HWY_NOINLINE void store_columns(const float* HWY_RESTRICT sums, int rows, int64_t columns,
                                const Corner& corner) {
  const D d;
  HWY_ALIGN float row[kPanelColumns];
  HWY_ALIGN float before[kPanelColumns] = {};
  for (int i = 0; i < rows; ++i) {
    if (corner.beta != 0) {
      std::copy_n(corner.in + i * corner.in_stride, columns, before);
    }
    for (size_t j = 0; j < static_cast<size_t>(kPanelColumns); j += hn::Lanes(d)) {
      V value = hn::Mul(hn::Load(d, sums + i * kPanelColumns + j), hn::Set(d, corner.alpha));
      if (corner.beta != 0) {
        value = hn::MulAdd(hn::Load(d, before + j), hn::Set(d, corner.beta), value);
      }
      hn::Store(value, d, row + j);
    }
    std::copy_n(row, columns, corner.out + i * corner.out_stride);
  }
}

// out (kRows, columns) = alpha a b + beta in, for a panel of b [depth][2 vectors]. Rows
// of a are contiguous in depth and a_stride apart; or, if kAdjacent, the rows are contiguous and
// depths a_stride apart, as in a packed panel.
//
// Not inline, nor is packing: one function of all this took GCC 12 twice as long, and a call is
// nothing to thousands of multiplications.
template <int kRows, bool kAdjacent>
HWY_NOINLINE void multiply_panel(const float* HWY_RESTRICT a, int64_t a_stride,
                                 const float* HWY_RESTRICT b, int64_t depth, int64_t columns,
                                 const Corner& corner) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  V left[kRows];
  V right[kRows];
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
    left[i] = hn::Zero(d);
    right[i] = hn::Zero(d);
  }
  // The stores at the end would wait for lines of c that lie in far caches.
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
    hwy::Prefetch(corner.out + i * corner.out_stride);
    hwy::Prefetch(corner.out + i * corner.out_stride + 2 * lanes - 1);
  }
  const auto step = [&]() HWY_ATTR {
    const V b_left = hn::Load(d, b);
    const V b_right = hn::Load(d, b + lanes);
    b += 2 * lanes;
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const V x = hn::Set(d, kAdjacent ? a[i] : a[i * a_stride]);
      left[i] = hn::MulAdd(x, b_left, left[i]);
      right[i] = hn::MulAdd(x, b_right, right[i]);
    }
    a += kAdjacent ? a_stride : 1;
  };
  int64_t k = 0;
  if constexpr (!kAdjacent) {
    for (; k + kLine <= depth; k += kLine) {
#pragma GCC unroll 12
      for (int i = 0; i < kRows; ++i) {
        hwy::Prefetch(a + (kPanelRows + i) * a_stride);
      }
      for (int64_t j = 0; j < kLine; ++j) {
        step();
      }
    }
  }
  for (; k < depth; ++k) {
    step();
  }
  const V alpha = hn::Set(d, corner.alpha);
  const V beta = hn::Set(d, corner.beta);
  if (columns == 2 * lanes) {
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      float* out = corner.out + i * corner.out_stride;
      V l = hn::Mul(left[i], alpha);
      V r = hn::Mul(right[i], alpha);
      if (corner.beta != 0) {
        const float* in = corner.in + i * corner.in_stride;
        l = hn::MulAdd(hn::LoadU(d, in), beta, l);
        r = hn::MulAdd(hn::LoadU(d, in + lanes), beta, r);
      }
      hn::StoreU(l, d, out);
      hn::StoreU(r, d, out + lanes);
    }
    return;
  }
  HWY_ALIGN float sums[kRows * kPanelColumns];
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i) {
    hn::Store(left[i], d, sums + i * kPanelColumns);
    hn::Store(right[i], d, sums + i * kPanelColumns + lanes);
  }
  store_columns(sums, kRows, columns, corner);
}

// The same for a number of rows known at run time, at most kRows.
template <int kRows, bool kAdjacent>
HWY_INLINE void multiply_rows(int64_t rows, const float* a, int64_t a_stride, const float* b,
                              int64_t depth, int64_t columns, const Corner& corner) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      multiply_rows<kRows - 1, kAdjacent>(rows, a, a_stride, b, depth, columns, corner);
      return;
    }
  }
  multiply_panel<kRows, kAdjacent>(a, a_stride, b, depth, columns, corner);
}

void tile(const GemmOutput& output, std::span<const GemmProduct> products, const GemmTile& t) {
  HWY_ALIGN float packed_b[kGemmMaxTileColumns * kMaxDepth];
  HWY_ALIGN float packed_a[kBlockRows * kMaxDepth];
  float* out = output.out + t.first_row * output.out_stride + t.first_column;
  GemmOutput target = {.out = out,
                       .out_stride = output.out_stride,
                       .in = output.in + t.first_row * output.in_stride + t.first_column,
                       .in_stride = output.in_stride,
                       .beta = output.beta};
  for (const GemmProduct& product : products) {
    const GemmOperand& a = product.a;
    const int64_t blocks = (product.depth + kMaxDepth - 1) / kMaxDepth;
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t start = product.depth * block / blocks;
      const int64_t depth = product.depth * (block + 1) / blocks - start;
      if (product.b.format != nullptr) {
        pack_blocks<kPanelColumns>(packed_b, product.b, t.first_column, t.columns, start, depth);
      } else if (product.b.dtype == DType::bf16) {
        pack<kPanelColumns, bf16>(packed_b, product.b, t.first_column, t.columns, start, depth);
      } else {
        pack<kPanelColumns, float>(packed_b, product.b, t.first_column, t.columns, start, depth);
      }
      for (int64_t row = 0; row < t.rows; row += kBlockRows) {
        const int64_t rows = std::min(kBlockRows, t.rows - row);
        // With few columns, packing a costs more than it saves.
        const bool packs = a.depth_stride != 1 && t.columns > kFewColumns;
        if (packs) {
          pack<kPanelRows, float>(packed_a, a, t.first_row + row, rows, start, depth);
        }
        for (int64_t j = 0; j < t.columns; j += kPanelColumns) {
          const float* b = packed_b + j * depth;
          const int64_t columns = std::min(kPanelColumns, t.columns - j);
          for (int64_t i = 0; i < rows; i += kPanelRows) {
            const Corner corner = {.out = target.out + (row + i) * target.out_stride + j,
                                   .out_stride = target.out_stride,
                                   .in = target.in + (row + i) * target.in_stride + j,
                                   .in_stride = target.in_stride,
                                   .alpha = product.alpha,
                                   .beta = target.beta};
            const float* direct = a.at<float>(t.first_row + row + i, start);
            if (a.depth_stride == 1) {
              multiply_rows<kPanelRows, false>(rows - i, direct, a.row_stride, b, depth, columns,
                                               corner);
            } else {
              multiply_rows<kPanelRows, true>(rows - i, packs ? packed_a + i * depth : direct,
                                              packs ? kPanelRows : a.depth_stride, b, depth,
                                              columns, corner);
            }
          }
        }
      }
      target.in = out;
      target.in_stride = target.out_stride;
      target.beta = 1;
    }
  }
}

// Dot products of kRows rows of a with kColumns rows of b, contiguous in depth.
template <int kRows, int kColumns, class T>
HWY_INLINE void dots(const float* HWY_RESTRICT a, int64_t a_stride, const T* HWY_RESTRICT b,
                     int64_t b_stride, int64_t depth, const Corner& corner) {
  const D d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  V sums[kRows][kColumns];
  for (auto& row : sums) {
    for (V& sum : row) {
      sum = hn::Zero(d);
    }
  }
  int64_t k = 0;
  for (; k + lanes <= depth; k += lanes) {
    V x[kRows];
    for (int i = 0; i < kRows; ++i) {
      x[i] = hn::LoadU(d, a + i * a_stride + k);
    }
    for (int j = 0; j < kColumns; ++j) {
      const V w = load_f32(d, b + j * b_stride + k);
      for (int i = 0; i < kRows; ++i) {
        sums[i][j] = hn::MulAdd(x[i], w, sums[i][j]);
      }
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kColumns; ++j) {
      float sum = hn::GetLane(hn::SumOfLanes(d, sums[i][j]));
      for (int64_t rest = k; rest < depth; ++rest) {
        sum += a[i * a_stride + rest] * static_cast<float>(b[j * b_stride + rest]);
      }
      float& out = corner.out[i * corner.out_stride + j];
      const float before =
          corner.beta == 0 ? 0.0f : corner.beta * corner.in[i * corner.in_stride + j];
      out = corner.alpha * sum + before;
    }
  }
}

template <int kRows, int kColumns, class T>
HWY_INLINE void dots_of_rows(int64_t rows, const float* a, int64_t a_stride, const T* b,
                             int64_t b_stride, int64_t depth, const Corner& corner) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      dots_of_rows<kRows - 1, kColumns>(rows, a, a_stride, b, b_stride, depth, corner);
      return;
    }
  }
  dots<kRows, kColumns>(a, a_stride, b, b_stride, depth, corner);
}

// One product's share of a corner.
template <int kRows, class T>
HWY_INLINE void product_of_dots(const GemmProduct& p, int64_t row, int64_t rows, int64_t column,
                                bool four_columns, const Corner& corner) {
  const float* a = p.a.at<float>(row, 0);
  const T* b = p.b.at<T>(column, 0);
  if (four_columns) {
    dots_of_rows<kRows, 4>(rows, a, p.a.row_stride, b, p.b.row_stride, p.depth, corner);
  } else {
    dots_of_rows<kRows, 1>(rows, a, p.a.row_stride, b, p.b.row_stride, p.depth, corner);
  }
}

void tile_of_dots(const GemmOutput& output, std::span<const GemmProduct> products,
                  const GemmTile& t) {
  constexpr int64_t kRows = 3;
  constexpr int64_t kColumns = 4;
  for (int64_t j = 0; j < t.columns;) {
    const int64_t columns = t.columns - j >= kColumns ? kColumns : 1;
    for (int64_t i = 0; i < t.rows; i += kRows) {
      const int64_t row = t.first_row + i;
      const int64_t column = t.first_column + j;
      Corner corner = {.out = output.out + row * output.out_stride + column,
                       .out_stride = output.out_stride,
                       .in = output.in + row * output.in_stride + column,
                       .in_stride = output.in_stride,
                       .alpha = 1,
                       .beta = output.beta};
      for (const GemmProduct& p : products) {
        corner.alpha = p.alpha;
        if (p.b.dtype == DType::bf16) {
          product_of_dots<kRows, bf16>(p, row, t.rows - i, column, columns == kColumns, corner);
        } else {
          product_of_dots<kRows, float>(p, row, t.rows - i, column, columns == kColumns, corner);
        }
        corner.in = corner.out;
        corner.in_stride = corner.out_stride;
        corner.beta = 1;
      }
    }
    j += columns;
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashloom {

HWY_EXPORT(tile);
HWY_EXPORT(tile_of_dots);

void gemm_tile(const GemmOutput& output, std::span<const GemmProduct> products,
               const GemmTile& tile) {
  HWY_DYNAMIC_DISPATCH(tile)(output, products, tile);
}

void gemm_tile_of_dots(const GemmOutput& output, std::span<const GemmProduct> products,
                       const GemmTile& tile) {
  HWY_DYNAMIC_DISPATCH(tile_of_dots)(output, products, tile);
}

}  // namespace flashloom
#endif  // HWY_ONCE
