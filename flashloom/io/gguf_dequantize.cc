#include "flashloom/io/gguf_dequantize.h"

#include <fmt/format.h>

#include <bit>
#include <cstdint>
#include <cstring>

#include "flashloom/core/dtype.h"
#include "flashloom/core/error.h"
#include "flashloom/io/element_conversion.h"

namespace flashloom {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is little endian");

float half_at(const uint8_t* bytes) {
  uint16_t bits;
  std::memcpy(&bits, bytes, sizeof(bits));
  return static_cast<float>(f16::from_bits(bits));
}

// In the names below, d is a block's scale and m its offset, as in ggml.

// d f16, 16 bytes of two 4-bit numbers each: elements j and j + 16.
struct Q4_0 {
  static constexpr int kElements = 32;
  static constexpr int kBytes = 18;

  static void decode_group(const uint8_t* block, int64_t, float* out) {
    const float d = half_at(block);
    for (int j = 0; j < 16; ++j) {
      const int pair = block[2 + j];
      out[j] = d * static_cast<float>((pair & 15) - 8);
      out[j + 16] = d * static_cast<float>((pair >> 4) - 8);
    }
  }
};

// d f16, m f16, 16 bytes of pairs.
struct Q4_1 {
  static constexpr int kElements = 32;
  static constexpr int kBytes = 20;

  static void decode_group(const uint8_t* block, int64_t, float* out) {
    const float d = half_at(block);
    const float m = half_at(block + 2);
    for (int j = 0; j < 16; ++j) {
      const int pair = block[4 + j];
      out[j] = d * static_cast<float>(pair & 15) + m;
      out[j + 16] = d * static_cast<float>(pair >> 4) + m;
    }
  }
};

// The fifth bits of 32 elements are the bits of one 32-bit word.
uint32_t fifth_bits(const uint8_t* bytes) {
  uint32_t bits;
  std::memcpy(&bits, bytes, sizeof(bits));
  return bits;
}

// d f16, fifth bits, 16 bytes of pairs.
struct Q5_0 {
  static constexpr int kElements = 32;
  static constexpr int kBytes = 22;

  static void decode_group(const uint8_t* block, int64_t, float* out) {
    const float d = half_at(block);
    const uint32_t high = fifth_bits(block + 2);
    for (int j = 0; j < 16; ++j) {
      const int pair = block[6 + j];
      const int first = (pair & 15) | static_cast<int>((high >> j & 1) << 4);
      const int second = (pair >> 4) | static_cast<int>((high >> (j + 16) & 1) << 4);
      out[j] = d * static_cast<float>(first - 16);
      out[j + 16] = d * static_cast<float>(second - 16);
    }
  }
};

// d f16, m f16, fifth bits, 16 bytes of pairs.
struct Q5_1 {
  static constexpr int kElements = 32;
  static constexpr int kBytes = 24;

  static void decode_group(const uint8_t* block, int64_t, float* out) {
    const float d = half_at(block);
    const float m = half_at(block + 2);
    const uint32_t high = fifth_bits(block + 4);
    for (int j = 0; j < 16; ++j) {
      const int pair = block[8 + j];
      const int first = (pair & 15) | static_cast<int>((high >> j & 1) << 4);
      const int second = (pair >> 4) | static_cast<int>((high >> (j + 16) & 1) << 4);
      out[j] = d * static_cast<float>(first) + m;
      out[j + 16] = d * static_cast<float>(second) + m;
    }
  }
};

// d f16, 32 signed bytes.
struct Q8_0 {
  static constexpr int kElements = 32;
  static constexpr int kBytes = 34;

  static void decode_group(const uint8_t* block, int64_t, float* out) {
    const float d = half_at(block);
    for (int j = 0; j < 32; ++j) {
      out[j] = d * static_cast<float>(static_cast<int8_t>(block[2 + j]));
    }
  }
};

// Scale and offset of sub-block i of Q4_K and Q5_K: twelve bytes hold eight pairs of 6-bit numbers;
// the last four pairs have their low four bits in bytes 8 to 11 and their high two bits on top of
// the first eight bytes.
struct ScaleAndOffset {
  int scale;
  int offset;

  ScaleAndOffset(const uint8_t* packed, int64_t i) {
    if (i < 4) {
      scale = packed[i] & 63;
      offset = packed[i + 4] & 63;
    } else {
      scale = (packed[i + 4] & 15) | (packed[i - 4] >> 2 & 48);
      offset = (packed[i + 4] >> 4) | (packed[i] >> 2 & 48);
    }
  }
};

// d f16, m f16, 12 bytes of scales, 128 bytes of pairs: sub-blocks 2k and 2k + 1 share 32 bytes.
struct Q4_K {
  static constexpr int kElements = 256;
  static constexpr int kBytes = 144;

  static void decode_group(const uint8_t* block, int64_t i, float* out) {
    const ScaleAndOffset packed(block + 4, i);
    const float scale = half_at(block) * static_cast<float>(packed.scale);
    const float offset = half_at(block + 2) * static_cast<float>(packed.offset);
    const uint8_t* pairs = block + 16 + i / 2 * 32;
    const int shift = i % 2 * 4;
    for (int j = 0; j < 32; ++j) {
      out[j] = scale * static_cast<float>(pairs[j] >> shift & 15) - offset;
    }
  }
};

// As Q4_K with 32 bytes of fifth bits before the pairs: bit i of byte j is of sub-block i.
struct Q5_K {
  static constexpr int kElements = 256;
  static constexpr int kBytes = 176;

  static void decode_group(const uint8_t* block, int64_t i, float* out) {
    const ScaleAndOffset packed(block + 4, i);
    const float scale = half_at(block) * static_cast<float>(packed.scale);
    const float offset = half_at(block + 2) * static_cast<float>(packed.offset);
    const uint8_t* high = block + 16;
    const uint8_t* pairs = block + 48 + i / 2 * 32;
    const int shift = i % 2 * 4;
    for (int j = 0; j < 32; ++j) {
      const int number = (pairs[j] >> shift & 15) | (high[j] >> i & 1) << 4;
      out[j] = scale * static_cast<float>(number) - offset;
    }
  }
};

// 128 bytes of low pairs, 64 bytes of upper two bits, 16 signed scales, d f16.
struct Q6_K {
  static constexpr int kElements = 256;
  static constexpr int kBytes = 210;

  static void decode_group(const uint8_t* block, int64_t group, float* out) {
    const float d = half_at(block + 208);
    const int64_t half = group / 4;
    const int64_t quarter = group % 4;
    const uint8_t* low = block + half * 64 + quarter % 2 * 32;
    const uint8_t* high = block + 128 + half * 32;
    const int64_t low_shift = quarter / 2 * 4;
    const int64_t high_shift = quarter * 2;
    for (int part = 0; part < 2; ++part) {  // of 16, with one scale
      const auto packed = static_cast<int8_t>(block[192 + group * 2 + part]);
      const float scale = d * static_cast<float>(packed);
      for (int j = part * 16; j < part * 16 + 16; ++j) {
        const int number = (low[j] >> low_shift & 15) | (high[j] >> high_shift & 3) << 4;
        out[j] = scale * static_cast<float>(number - 32);
      }
    }
  }
};

constexpr int64_t kGroup = 32;  // elements that every type can decode by themselves

template <class Block>
void decode_row(const std::byte* row, int64_t first, int64_t count, float* out) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(row);
  constexpr int64_t kGroups = Block::kElements / kGroup;
  for (int64_t group = first / kGroup; group < (first + count) / kGroup; ++group) {
    Block::decode_group(bytes + group / kGroups * Block::kBytes, group % kGroups, out);
    out += kGroup;
  }
}

template <class Block>
const BlockFormat* format_of(GgmlType type) {
  static const BlockFormat format = {
      .name = find_ggml_type(static_cast<uint32_t>(type))->name,
      .block_elements = Block::kElements,
      .block_bytes = Block::kBytes,
      .group_elements = kGroup,
      .decode = decode_row<Block>,
  };
  return &format;
}

}  // namespace

void gguf_dequantize(GgmlType type, std::span<const std::byte> blocks, std::span<float> out) {
  const GgmlTypeInfo* info = find_ggml_type(static_cast<uint32_t>(type));
  if (info == nullptr || !info->decodable) {
    throw Unsupported("gguf_dequantize",
                      fmt::format("type {}; those supported are {}",
                                  info == nullptr ? fmt::format("{}", static_cast<uint32_t>(type))
                                                  : std::string(info->name),
                                  decodable_ggml_types()));
  }
  const auto elements = static_cast<int64_t>(out.size());
  if (elements % info->block_elements != 0 ||
      static_cast<int64_t>(blocks.size()) != elements / info->block_elements * info->block_bytes) {
    throw InvalidArgument("gguf_dequantize", "blocks",
                          fmt::format("whole {} blocks for {} elements", info->name, elements),
                          fmt::format("{} bytes", blocks.size()));
  }
  switch (type) {
    case GgmlType::f32:
      return decode_to_f32(DType::f32, blocks.data(), elements, out.data());
    case GgmlType::f16:
      return decode_to_f32(DType::f16, blocks.data(), elements, out.data());
    case GgmlType::bf16:
      return decode_to_f32(DType::bf16, blocks.data(), elements, out.data());
    default:
      return gguf_block_format(type)->decode(blocks.data(), 0, elements, out.data());
  }
}

const BlockFormat* gguf_block_format(GgmlType type) {
  switch (type) {
    case GgmlType::q4_0:
      return format_of<Q4_0>(type);
    case GgmlType::q4_1:
      return format_of<Q4_1>(type);
    case GgmlType::q5_0:
      return format_of<Q5_0>(type);
    case GgmlType::q5_1:
      return format_of<Q5_1>(type);
    case GgmlType::q8_0:
      return format_of<Q8_0>(type);
    case GgmlType::q4_k:
      return format_of<Q4_K>(type);
    case GgmlType::q5_k:
      return format_of<Q5_K>(type);
    case GgmlType::q6_k:
      return format_of<Q6_K>(type);
    case GgmlType::f32:
    case GgmlType::f16:
    case GgmlType::bf16:
      break;
  }
  return nullptr;
}

}  // namespace flashloom
