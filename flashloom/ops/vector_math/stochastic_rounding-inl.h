// core/stochastic_rounding.h for vectors: the same bits. Included once per target.
#if defined(FLASHLOOM_OPS_VECTOR_MATH_STOCHASTIC_ROUNDING_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef FLASHLOOM_OPS_VECTOR_MATH_STOCHASTIC_ROUNDING_INL_H_
#undef FLASHLOOM_OPS_VECTOR_MATH_STOCHASTIC_ROUNDING_INL_H_
#else
#define FLASHLOOM_OPS_VECTOR_MATH_STOCHASTIC_ROUNDING_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "flashloom/core/stochastic_rounding.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Room that rounding_bits_of() needs beyond its elements: a block before, and blocks of a whole
/// vector (16 lanes at most) behind.
inline constexpr size_t kRoundingBitsSlack = 8 + 8 * 16;

/// rounding_bits() of elements first … first + count - 1, into a buffer of count +
/// kRoundingBitsSlack; returns where those of `first` stand. Lanes of 64 bits hold a block each, as
/// Philox multiplies 32 bits by 32: 3 operations an element with AVX2.
HWY_INLINE const uint16_t* rounding_bits_of(uint64_t seed, uint64_t step, uint64_t first,
                                            size_t count, uint16_t* buffer) {
  const uint64_t begin = first / 8;
  const uint64_t end = (first + count + 7) / 8;
#if HWY_TARGET == HWY_SCALAR
  for (uint64_t block = begin; block < end; ++block) {
    const std::array<uint32_t, 4> words = rounding_block(seed, step, block);
    for (uint64_t i = 0; i < 8; ++i) {
      buffer[(block - begin) * 8 + i] = static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16));
    }
  }
#else
  const hn::ScalableTag<uint64_t> d;
  const hn::Repartition<uint32_t, decltype(d)> d32;
  const size_t lanes = hn::Lanes(d);
  const auto low = hn::Set(d, 0xffffffffu);
  const auto m0 = hn::BitCast(d32, hn::Set(d, 0xD2511F53u));
  const auto m1 = hn::BitCast(d32, hn::Set(d, 0xCD9E8D57u));
  const uint64_t purpose = step << 8 | static_cast<uint64_t>(RandomStream::stochastic_rounding);
  for (uint64_t block = begin; block < end; block += lanes) {
    const auto counter = hn::Iota(d, block);
    auto c0 = hn::And(counter, low);
    auto c1 = hn::ShiftRight<32>(counter);
    auto c2 = hn::Set(d, purpose & 0xffffffffu);
    auto c3 = hn::Set(d, purpose >> 32);
    auto k0 = static_cast<uint32_t>(seed);
    auto k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
      const auto p0 = hn::MulEven(m0, hn::BitCast(d32, c0));
      const auto p1 = hn::MulEven(m1, hn::BitCast(d32, c2));
      c0 = hn::Xor(hn::Xor(hn::ShiftRight<32>(p1), c1), hn::Set(d, uint64_t{k0}));
      c2 = hn::Xor(hn::Xor(hn::ShiftRight<32>(p0), c3), hn::Set(d, uint64_t{k1}));
      c1 = hn::And(p1, low);
      c3 = hn::And(p0, low);
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    alignas(64) uint64_t halves[2][8];
    hn::Store(hn::Or(c0, hn::ShiftLeft<32>(c1)), d, halves[0]);
    hn::Store(hn::Or(c2, hn::ShiftLeft<32>(c3)), d, halves[1]);
    for (size_t i = 0; i < lanes; ++i) {
      uint16_t* to = buffer + (block - begin + i) * 8;
      std::memcpy(to, &halves[0][i], sizeof(uint64_t));
      std::memcpy(to + 4, &halves[1][i], sizeof(uint64_t));
    }
  }
#endif
  return buffer + first % 8;
}

/// round_stochastically() of each lane.
template <class D>
HWY_INLINE void store_stochastic(D d, hn::Vec<D> v, const uint16_t* bits, bf16* p) {
  const hn::Rebind<uint16_t, D> d16;
  const hn::RebindToUnsigned<D> d32;
  const hn::RebindToSigned<D> di32;
  const auto pattern = hn::BitCast(d32, v);
  const auto sum = hn::Add(pattern, hn::PromoteTo(d32, hn::LoadU(d16, bits)));
  const auto quiet = hn::Or(pattern, hn::Set(d32, 0x400000u));
  const auto is_nan = hn::RebindMask(d32, hn::IsNaN(v));
  const auto fits = hn::RebindMask(d32, hn::IsFinite(hn::BitCast(d, sum)));
  const auto finite = hn::RebindMask(d32, hn::IsFinite(v));
  const auto cut = hn::IfThenElse(hn::And(fits, finite), sum, pattern);
  const auto upper = hn::ShiftRight<16>(hn::IfThenElse(is_nan, quiet, cut));
  hn::StoreU(hn::DemoteTo(d16, hn::BitCast(di32, upper)), d16, reinterpret_cast<uint16_t*>(p));
}

}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#endif
