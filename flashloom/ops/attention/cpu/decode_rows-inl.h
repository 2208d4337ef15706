// How decoding reads rows of K and V where they lie. Included once per target.
#if defined(FLASHLOOM_OPS_ATTENTION_CPU_DECODE_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHLOOM_OPS_ATTENTION_CPU_DECODE_ROWS_INL_H_
#undef FLASHLOOM_OPS_ATTENTION_CPU_DECODE_ROWS_INL_H_
#else
#define FLASHLOOM_OPS_ATTENTION_CPU_DECODE_ROWS_INL_H_
#endif

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "flashloom/ops/attention/cpu/attention_decode.h"
#include "flashloom/ops/attention/cpu/tile_load-inl.h"
#include "flashloom/ops/attention/cpu/tile_math-inl.h"
#include "flashloom/ops/attention/cpu/tile_pairs-inl.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {

/// Where the rows of a block lie; behind the last key, up to a whole step, it stands again.
using RowPointers = std::array<const std::byte*, kDecodeBlock>;

// A row is read in pieces of kBytes, each kVectors vectors of f32. load() may order the elements of
// a piece as suits it: the other operand, q or the output, keeps that order.

struct StoredF32 {
  static constexpr int kVectors = 1;
  static constexpr int kBytes = 4 * kLanes;

  static HWY_INLINE void load(const std::byte* piece, Vector (&out)[kVectors]) {
    out[0] = hn::LoadU(Lanes(), reinterpret_cast<const float*>(piece));
  }
};

struct StoredF16 {
  static constexpr int kVectors = 1;
  static constexpr int kBytes = 2 * kLanes;

  static HWY_INLINE void load(const std::byte* piece, Vector (&out)[kVectors]) {
    const hn::Rebind<hwy::float16_t, Lanes> d16;
    out[0] = hn::PromoteTo(Lanes(), hn::LoadU(d16, reinterpret_cast<const hwy::float16_t*>(piece)));
  }
};

// The even elements, then the odd ones: one shift and one mask widen a whole vector of bf16, and no
// element changes its lane.
struct StoredBf16 {
  static constexpr int kVectors = 2;
  static constexpr int kBytes = 4 * kLanes;

  static HWY_INLINE void load(const std::byte* piece, Vector (&out)[kVectors]) {
    const Lanes d;
    const hn::RebindToUnsigned<Lanes> d32;
#if HWY_TARGET == HWY_SCALAR
    uint32_t pair = 0;  // at an address that may be odd for 32 bits
    std::memcpy(&pair, piece, sizeof(pair));
    const auto bits = hn::Set(d32, pair);
#else
    const auto bits = hn::LoadU(d32, reinterpret_cast<const uint32_t*>(piece));
#endif
    out[0] = hn::BitCast(d, hn::ShiftLeft<16>(bits));
    out[1] = hn::BitCast(d, hn::And(bits, hn::Set(d32, 0xffff0000u)));
  }
};

/// How the products read the rows of a tensor.
enum class RowForm : uint8_t {
  f32,
  f16,
  bf16,
  pairs,  // of bf16, multiplied as they are stored
};

struct RowFormat {
  RowForm form;
  bool converted;  // rows are copied to scratch as f32 first
  int64_t pieces;  // of a row
  int64_t bytes;   // of a row in memory
};

/// `width` elements of a row; rows of scratch have `padded` ones. `pairs`: q may be multiplied as
/// pairs of bf16.
inline RowFormat row_format(DType dtype, int64_t width, int64_t padded, bool pairs) {
  const int64_t bytes = width * static_cast<int64_t>(dtype_bytes(dtype));
  const auto pieces = [&](int64_t of) { return bytes % of == 0 ? bytes / of : 0; };
  if (dtype == DType::f32 && pieces(StoredF32::kBytes) > 0) {
    return {RowForm::f32, false, pieces(StoredF32::kBytes), bytes};
  }
  if (dtype == DType::f16 && pieces(StoredF16::kBytes) > 0) {
    return {RowForm::f16, false, pieces(StoredF16::kBytes), bytes};
  }
  if (dtype == DType::bf16 && pieces(StoredBf16::kBytes) > 0) {
    return {pairs ? RowForm::pairs : RowForm::bf16, false, pieces(StoredBf16::kBytes), bytes};
  }
  return {RowForm::f32, true, padded / kLanes, bytes};
}

/// Where element `i` of a row of `form` stands in rows of the other operand.
inline int64_t place_of(RowForm form, int64_t i) {
  if (form != RowForm::bf16) {
    return i;
  }
  constexpr int64_t kPiece = 2 * kLanes;
  return i / kPiece * kPiece + i % 2 * kLanes + i % kPiece / 2;
}

/// Copies rows to scratch as f32 and points there.
inline void convert_rows(DType dtype, int64_t width, int64_t padded, int64_t count,
                         float* HWY_RESTRICT scratch, RowPointers& pointers) {
  for (int64_t j = 0; j < count; ++j) {
    float* to = scratch + j * padded;
    load_row(pointers[static_cast<size_t>(j)], dtype, width, padded, to);
    pointers[static_cast<size_t>(j)] = reinterpret_cast<const std::byte*>(to);
  }
  std::fill(pointers.begin() + count, pointers.end(), pointers[static_cast<size_t>(count - 1)]);
}

}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#endif
