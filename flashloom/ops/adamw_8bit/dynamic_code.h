#pragma once

#include <array>
#include <cstdint>

namespace flashloom {

/// Elements that share a scale, the largest magnitude among them.
inline constexpr int64_t kDynamicCodeBlock = 256;

/// The dynamic code of 8 bits: 256 numbers in ascending order whose spacing grows with them, so
/// that seven decades have a place. With i = 0 … 6, decade 10^(i - 7) … 10^(i - 6) holds the
/// middles of 2^i (signed, once more with a minus) or 2^(i + 1) (unsigned) equal parts of its upper
/// nine tenths; 0 and 1 come on top. Formed in float64 and rounded once.
///
/// Source: Dettmers et al. 2022, 8-bit optimizers via block-wise quantization; the numbers are
///         those of bitsandbytes' create_dynamic_map().
const std::array<float, 256>& dynamic_code(bool is_signed);

/// The code nearest to x in [-1, 1] (unsigned: [0, 1]); halfway, the one of the smaller magnitude.
/// Unsigned codes of positive numbers are never 0: a second moment of zero beside a first moment
/// that is not would make a step without bound.
uint8_t encode_dynamic(float x, bool is_signed);

namespace detail {

/// How to find the nearest code without a search, for magnitudes: the upper half of an f32's bits
/// (exponent and 7 bits of the mantissa) names a bin so narrow that at most one border between
/// codes lies in it. An entry is code << 17 | border: the code is one more from where the lower
/// half of the bits reaches `border`.
struct DynamicCodeBins {
  static constexpr int32_t kFirst = 104 << 7;  // 2^-23, below the smallest border
  static constexpr int32_t kLast = 127 << 7;   // 1
  std::array<uint32_t, kLast - kFirst + 1> entries;
};

const DynamicCodeBins& dynamic_code_bins(bool is_signed);

}  // namespace detail
}  // namespace flashloom
