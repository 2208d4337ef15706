#include "flashloom/io/gguf_quantize.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "flashloom/core/dtype.h"
#include "flashloom/core/error.h"
#include "flashloom/io/element_conversion.h"

namespace flashloom {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is little endian");

// Everything below is f32 with one rounding an operation, in the reference's order: another order
// picks other bits in ties and in sums. In the names, d is a block's scale and m its offset.

void store_half(float value, uint8_t* bytes) {
  const uint16_t bits = f16(value).bits;
  std::memcpy(bytes, &bits, sizeof(bits));
}

float half_at(const uint8_t* bytes) {
  uint16_t bits;
  std::memcpy(&bits, bytes, sizeof(bits));
  return static_cast<float>(f16::from_bits(bits));
}

// The value farthest from 0, with its sign; of equal ones the first.
float extreme(const float* x, int count) {
  float largest = 0;
  float value = 0;
  for (int j = 0; j < count; ++j) {
    if (std::fabs(x[j]) > largest) {
      largest = std::fabs(x[j]);
      value = x[j];
    }
  }
  return value;
}

// 0 for numbers so small that they have none: they are stored as zeros.
float inverse(float d) {
  const float value = 1.0f / d;
  return std::isfinite(value) ? value : 0.0f;
}

// The extreme value becomes the end of the range of 2^bits numbers that reaches farther, so that
// one of its neighbours is lost and no sign of zero: number = trunc(x / d + half + 0.5).
struct Symmetric {
  float d;
  float inverse_d;
  int half;

  Symmetric(const float* x, int bits)
      : d(extreme(x, 32) / static_cast<float>(-(1 << (bits - 1)))),
        inverse_d(inverse(d)),
        half(1 << (bits - 1)) {}

  unsigned number(float x) const {
    const float shifted = x * inverse_d + (static_cast<float>(half) + 0.5f);
    return static_cast<unsigned>(std::min(2 * half - 1, static_cast<int>(shifted)));
  }
};

struct Q4_0 {
  static constexpr int kElements = 32;
  static constexpr int kBytes = 18;

  static void encode(const float* x, uint8_t* block) {
    const Symmetric code(x, 4);
    store_half(code.d, block);
    for (int j = 0; j < 16; ++j) {
      block[2 + j] = static_cast<uint8_t>(code.number(x[j]) | code.number(x[j + 16]) << 4);
    }
  }
};

struct Q5_0 {
  static constexpr int kElements = 32;
  static constexpr int kBytes = 22;

  static void encode(const float* x, uint8_t* block) {
    const Symmetric code(x, 5);
    store_half(code.d, block);
    uint32_t fifth = 0;
    for (int j = 0; j < 16; ++j) {
      const unsigned first = code.number(x[j]);
      const unsigned second = code.number(x[j + 16]);
      block[6 + j] = static_cast<uint8_t>((first & 15) | (second & 15) << 4);
      fifth |= (first >> 4) << j | (second >> 4) << (j + 16);
    }
    std::memcpy(block + 2, &fifth, sizeof(fifth));
  }
};

struct Q8_0 {
  static constexpr int kElements = 32;
  static constexpr int kBytes = 34;

  static void encode(const float* x, uint8_t* block) {
    const float d = std::fabs(extreme(x, 32)) / 127.0f;
    const float inverse_d = inverse(d);
    store_half(d, block);
    for (int j = 0; j < 32; ++j) {
      block[2 + j] = static_cast<uint8_t>(static_cast<int8_t>(std::round(x[j] * inverse_d)));
    }
  }
};

constexpr int kGroup = 32;     // elements of a K type's sub-block
constexpr int kGroups = 8;     // of a block
constexpr int kLargest4 = 15;  // of 4 bits
constexpr int kLargest6 = 63;

// To even in ties. Groups of subnormal numbers give infinite steps; they may become anything in
// range.
int nearest(float value) {
  constexpr float kLimit = 1 << 22;
  return std::fabs(value) < kLimit ? static_cast<int>(std::nearbyint(value)) : 0;
}

// x ~ scale * number - offset, numbers of 4 bits, offset >= 0.
struct AffineFit {
  float scale = 0;
  float offset = 0;
  std::array<float, kGroup> number = {};
};

// Tries 21 scales around the range's own; for the numbers that each gives, weighted least squares
// finds scale and offset, and the fit of least weighted square error is kept. As in the reference,
// the range of later tries begins at the least value of the best fit so far.
AffineFit fit_group(const float* x, const float* weight) {
  float low = x[0];
  float high = x[0];
  float sum_w = weight[0];
  float sum_x = sum_w * x[0];
  for (int i = 1; i < kGroup; ++i) {
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
    sum_w += weight[i];
    sum_x += weight[i] * x[i];
  }
  low = std::min(low, 0.0f);
  if (high == low) {
    return {.offset = -low};
  }
  std::array<float, kGroup> number;
  const auto assign = [&](float steps) {
    const float inverse_scale = steps / (high - low);
    for (int i = 0; i < kGroup; ++i) {
      number[i] =
          static_cast<float>(std::clamp(nearest(inverse_scale * (x[i] - low)), 0, kLargest4));
    }
    return inverse_scale;
  };
  const auto error = [&](float scale, float least) {
    float sum = 0;
    for (int i = 0; i < kGroup; ++i) {
      const float difference = scale * number[i] + least - x[i];
      sum += weight[i] * (difference * difference);
    }
    return sum;
  };
  AffineFit best = {.scale = 1 / assign(static_cast<float>(kLargest4))};
  best.number = number;
  float best_error = error(best.scale, low);
  constexpr int kTries = 20;
  for (int t = 0; t <= kTries; ++t) {
    assign(-1.0f + 0.1f * static_cast<float>(t) + static_cast<float>(kLargest4));
    float sum_l = 0;
    float sum_l2 = 0;
    float sum_xl = 0;
    for (int i = 0; i < kGroup; ++i) {
      sum_l += weight[i] * number[i];
      sum_l2 += weight[i] * number[i] * number[i];
      sum_xl += weight[i] * number[i] * x[i];
    }
    const float determinant = sum_w * sum_l2 - sum_l * sum_l;
    if (!(determinant > 0)) {
      continue;
    }
    float scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
    float least = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
    if (least > 0) {
      least = 0;
      scale = sum_xl / sum_l2;
    }
    const float tried = error(scale, least);
    if (tried < best_error) {
      best_error = tried;
      best.scale = scale;
      best.number = number;
      low = least;
    }
  }
  best.offset = -low;
  return best;
}

// Puts 6-bit scale and offset of sub-block i where gguf_dequantize finds them.
void store_scales(uint8_t* packed, int i, unsigned scale, unsigned offset) {
  if (i < 4) {
    packed[i] = static_cast<uint8_t>(scale);
    packed[i + 4] = static_cast<uint8_t>(offset);
  } else {
    packed[i + 4] = static_cast<uint8_t>((scale & 15) | (offset & 15) << 4);
    packed[i - 4] = static_cast<uint8_t>(packed[i - 4] | (scale >> 4) << 6);
    packed[i] = static_cast<uint8_t>(packed[i] | (offset >> 4) << 6);
  }
}

struct Q4_K {
  static constexpr int kElements = kGroup * kGroups;
  static constexpr int kBytes = 144;

  static void encode(const float* x, uint8_t* block) {
    std::array<AffineFit, kGroups> fits;
    float largest_scale = 0;
    float largest_offset = 0;
    for (int i = 0; i < kGroups; ++i) {
      const float* group = x + i * kGroup;
      float squares = 0;
      for (int j = 0; j < kGroup; ++j) {
        squares += group[j] * group[j];
      }
      const float average = std::sqrt(squares / static_cast<float>(kGroup));
      std::array<float, kGroup> weight;
      for (int j = 0; j < kGroup; ++j) {
        weight[j] = average + std::fabs(group[j]);
      }
      fits[i] = fit_group(group, weight.data());
      largest_scale = std::max(largest_scale, fits[i].scale);
      largest_offset = std::max(largest_offset, fits[i].offset);
    }
    store_half(largest_scale / static_cast<float>(kLargest6), block);
    store_half(largest_offset / static_cast<float>(kLargest6), block + 2);
    const auto steps = [](float largest) {
      return largest > 0 ? static_cast<float>(kLargest6) / largest : 0.0f;
    };
    const float scale_steps = steps(largest_scale);
    const float offset_steps = steps(largest_offset);
    const float d = half_at(block);
    const float m = half_at(block + 2);
    std::memset(block + 4, 0, kBytes - 4);
    for (int i = 0; i < kGroups; ++i) {
      // A scale may be below 0 for strange weights; the reference keeps its low byte.
      const auto scale =
          static_cast<uint8_t>(std::min(kLargest6, nearest(scale_steps * fits[i].scale)));
      const auto offset =
          static_cast<uint8_t>(std::min(kLargest6, nearest(offset_steps * fits[i].offset)));
      store_scales(block + 4, i, scale, offset);
      // With the scale as it was stored.
      const float group_d = d * static_cast<float>(scale);
      const float group_m = m * static_cast<float>(offset);
      uint8_t* pairs = block + 16 + i / 2 * kGroup;
      for (int j = 0; j < kGroup; ++j) {
        // A scale that is stored as 0 leaves the numbers of the fit; nothing reads them.
        const int number =
            group_d == 0
                ? static_cast<int>(fits[i].number[j])
                : std::clamp(nearest((x[i * kGroup + j] + group_m) / group_d), 0, kLargest4);
        pairs[j] = static_cast<uint8_t>(pairs[j] | number << i % 2 * 4);
      }
    }
  }
};

template <class Block>
void encode_blocks(std::span<const float> values, std::byte* blocks) {
  auto* bytes = reinterpret_cast<uint8_t*>(blocks);
  const auto count = static_cast<int64_t>(values.size()) / Block::kElements;
  for (int64_t i = 0; i < count; ++i) {
    Block::encode(values.data() + i * Block::kElements, bytes + i * Block::kBytes);
  }
}

}  // namespace

bool can_quantize(GgmlType type) {
  switch (type) {
    case GgmlType::f32:
    case GgmlType::f16:
    case GgmlType::bf16:
    case GgmlType::q8_0:
    case GgmlType::q5_0:
    case GgmlType::q4_0:
    case GgmlType::q4_k:
      return true;
    default:
      return false;
  }
}

void gguf_quantize(GgmlType type, std::span<const float> values, std::span<std::byte> blocks) {
  const GgmlTypeInfo* info = find_ggml_type(static_cast<uint32_t>(type));
  if (info == nullptr || !can_quantize(type)) {
    throw Unsupported("gguf_quantize",
                      fmt::format("type {}; those that can be written are F32, F16, BF16, Q8_0, "
                                  "Q5_0, Q4_0, Q4_K",
                                  info == nullptr ? fmt::format("{}", static_cast<uint32_t>(type))
                                                  : std::string(info->name)));
  }
  const auto elements = static_cast<int64_t>(values.size());
  if (elements % info->block_elements != 0 ||
      static_cast<int64_t>(blocks.size()) != elements / info->block_elements * info->block_bytes) {
    throw InvalidArgument("gguf_quantize", "blocks",
                          fmt::format("whole {} blocks for {} elements", info->name, elements),
                          fmt::format("{} bytes", blocks.size()));
  }
  switch (type) {
    case GgmlType::f32:
      return encode_from_f32(DType::f32, values.data(), elements, blocks.data());
    case GgmlType::f16:
      return encode_from_f32(DType::f16, values.data(), elements, blocks.data());
    case GgmlType::bf16:
      return encode_from_f32(DType::bf16, values.data(), elements, blocks.data());
    case GgmlType::q8_0:
      return encode_blocks<Q8_0>(values, blocks.data());
    case GgmlType::q5_0:
      return encode_blocks<Q5_0>(values, blocks.data());
    case GgmlType::q4_0:
      return encode_blocks<Q4_0>(values, blocks.data());
    default:
      return encode_blocks<Q4_K>(values, blocks.data());
  }
}

}  // namespace flashloom
