#include "flashloom/ops/adamw_8bit/adamw_8bit_cpu.h"

#include <algorithm>
#include <cmath>

#include "flashloom/core/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "flashloom/ops/adamw_8bit/adamw_8bit_cpu.cc"
// clang-format off: the order matters
#include "hwy/foreach_target.h"
// clang-format on
#include "flashloom/ops/adamw/adamw_step-inl.h"
#include "hwy/highway.h"

#ifndef FLASHLOOM_OPS_ADAMW_8BIT_ADAMW_8BIT_CPU_TILE_
#define FLASHLOOM_OPS_ADAMW_8BIT_ADAMW_8BIT_CPU_TILE_

namespace flashloom::detail {

// What a stretch of whole blocks works on, from its first element on.
struct Adamw8bitTile {
  uint8_t* m_codes;
  float* m_scales;
  uint8_t* v_codes;
  float* v_scales;
  const float* gradient;
  size_t count;
  uint64_t position;
};

}  // namespace flashloom::detail
#endif

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {
namespace {

constexpr auto kBlock = static_cast<size_t>(kDynamicCodeBlock);

template <class D>
HWY_INLINE hn::Vec<D> decode(D d, const float* code, const uint8_t* codes, float scale) {
  const hn::Rebind<uint8_t, D> d8;
  const hn::RebindToSigned<D> di32;
  const auto index = hn::PromoteTo(di32, hn::LoadU(d8, codes));
  return hn::Mul(hn::GatherIndex(d, code, index), hn::Set(d, scale));
}

// encode_dynamic() of each lane.
template <bool kSigned, class D>
HWY_INLINE void encode(D d, hn::Vec<D> x, const detail::DynamicCodeBins& bins, uint8_t* codes) {
  const hn::RebindToSigned<D> di32;
  const hn::Rebind<uint8_t, D> d8;
  constexpr int32_t kLast = detail::DynamicCodeBins::kLast - detail::DynamicCodeBins::kFirst;
  const auto zero = hn::Zero(di32);
  const auto bits = hn::BitCast(di32, hn::Abs(x));
  const auto bin =
      hn::Sub(hn::ShiftRight<16>(bits), hn::Set(di32, detail::DynamicCodeBins::kFirst));
  const auto place = hn::Min(hn::Max(bin, zero), hn::Set(di32, kLast));
  const auto entry =
      hn::GatherIndex(di32, reinterpret_cast<const int32_t*>(bins.entries.data()), place);
  const auto lower = hn::IfThenElse(hn::Lt(bin, zero), zero, hn::And(bits, hn::Set(di32, 0xffff)));
  const auto border = hn::And(entry, hn::Set(di32, 0x1ffff));
  const auto more = hn::IfThenElse(hn::Lt(lower, border), zero, hn::Set(di32, 1));
  auto code = hn::Add(hn::ShiftRight<17>(entry), more);
  if constexpr (kSigned) {
    const auto negative = hn::Max(hn::Sub(hn::Set(di32, 254), code), zero);
    code = hn::IfThenElse(hn::RebindMask(di32, hn::Lt(x, hn::Zero(d))), negative, code);
  } else {
    const auto least =
        hn::IfThenElse(hn::RebindMask(di32, hn::Gt(x, hn::Zero(d))), hn::Set(di32, 1), zero);
    code = hn::Max(code, least);
  }
  hn::StoreU(hn::DemoteTo(d8, code), d8, codes);
}

template <bool kSigned>
void store_block(const float* values, float largest, size_t count,
                 const detail::DynamicCodeBins& bins, uint8_t* codes, float* scale) {
  *scale = largest;
  const float divisor = largest > 0 ? largest : 1;
  for_vectors(count, [&](auto d, size_t i) HWY_ATTR {
    encode<kSigned>(d, hn::Div(hn::LoadU(d, values + i), hn::Set(d, divisor)), bins, codes + i);
  });
}

template <class T>
void blocks(T* parameter, const detail::Adamw8bitTile& t, const AdamwOptions& options,
            const detail::AdamwFactors& f) {
  const float* m_code = dynamic_code(true).data();
  const float* v_code = dynamic_code(false).data();
  const detail::DynamicCodeBins& m_bins = detail::dynamic_code_bins(true);
  const detail::DynamicCodeBins& v_bins = detail::dynamic_code_bins(false);
  const bool stochastic =
      sizeof(T) < sizeof(float) && options.rounding == AdamwRounding::stochastic;
  uint16_t buffer[kBlock + kRoundingBitsSlack];
  HWY_ALIGN float m[kBlock];
  HWY_ALIGN float v[kBlock];
  for (size_t first = 0; first < t.count; first += kBlock) {
    const size_t count = std::min(kBlock, t.count - first);
    const size_t block = first / kBlock;
    const uint16_t* bits = stochastic
                               ? rounding_bits_of(options.seed, static_cast<uint64_t>(options.step),
                                                  t.position + first, count, buffer)
                               : nullptr;
    T* p = parameter + first;
    for_vectors(count, [&](auto d, size_t i) HWY_ATTR {
      auto new_m = decode(d, m_code, t.m_codes + first + i, t.m_scales[block]);
      auto new_v = decode(d, v_code, t.v_codes + first + i, t.v_scales[block]);
      const auto updated =
          adamw_step(d, load_f32(d, p + i), new_m, new_v, hn::LoadU(d, t.gradient + first + i), f);
      hn::StoreU(new_m, d, m + i);
      hn::StoreU(new_v, d, v + i);
      store_parameter(d, updated, bits, p, i);
    });
    float m_largest = 0;
    float v_largest = 0;
    for (size_t i = 0; i < count; ++i) {
      m_largest = std::max(m_largest, std::fabs(m[i]));
      v_largest = std::max(v_largest, v[i]);
    }
    store_block<true>(m, m_largest, count, m_bins, t.m_codes + first, t.m_scales + block);
    store_block<false>(v, v_largest, count, v_bins, t.v_codes + first, t.v_scales + block);
  }
}

void tile_f32(float* parameter, const detail::Adamw8bitTile& tile, const AdamwOptions& options,
              const detail::AdamwFactors& factors) {
  blocks(parameter, tile, options, factors);
}

void tile_bf16(bf16* parameter, const detail::Adamw8bitTile& tile, const AdamwOptions& options,
               const detail::AdamwFactors& factors) {
  blocks(parameter, tile, options, factors);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashloom {

HWY_EXPORT(tile_f32);
HWY_EXPORT(tile_bf16);

namespace detail {
namespace {

// Elements of a tile, whole blocks: some 30 µs of work, against 2 µs to hand it out.
constexpr int64_t kTile = 32 * kDynamicCodeBlock;

}  // namespace

void adamw_8bit_cpu(const TensorView& parameter, const QuantizedMoment& m, const QuantizedMoment& v,
                    const float* gradient, const AdamwOptions& options) {
  const AdamwFactors factors = adamw_factors(options);
  const int64_t count = parameter.size();
  parallel_for(tile_count(count, kTile), [&](int64_t i) {
    const int64_t first = i * kTile;
    const Adamw8bitTile tile = {
        .m_codes = m.codes.as<uint8_t>() + first,
        .m_scales = m.scales.as<float>() + first / kDynamicCodeBlock,
        .v_codes = v.codes.as<uint8_t>() + first,
        .v_scales = v.scales.as<float>() + first / kDynamicCodeBlock,
        .gradient = gradient + first,
        .count = static_cast<size_t>(std::min(kTile, count - first)),
        .position = static_cast<uint64_t>(options.position + first),
    };
    if (parameter.dtype == DType::bf16) {
      HWY_DYNAMIC_DISPATCH(tile_bf16)(parameter.as<bf16>() + first, tile, options, factors);
    } else {
      HWY_DYNAMIC_DISPATCH(tile_f32)(parameter.as<float>() + first, tile, options, factors);
    }
  });
}

}  // namespace detail
}  // namespace flashloom
#endif  // HWY_ONCE
