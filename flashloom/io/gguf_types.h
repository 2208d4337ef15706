#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace flashloom {

/// How ggml stores the elements of a tensor, by the numbers of the GGUF format.
enum class GgmlType : uint32_t {
  f32 = 0,
  f16 = 1,
  q4_0 = 2,
  q4_1 = 3,
  q5_0 = 6,
  q5_1 = 7,
  q8_0 = 8,
  q4_k = 12,
  q5_k = 13,
  q6_k = 14,
  bf16 = 30,
};

/// A row of the format's table: `block_bytes` hold `block_elements`.
struct GgmlTypeInfo {
  uint32_t number;
  bool decodable;  // by gguf_dequantize; the others are known by size only
  std::string_view name;
  int64_t block_elements;
  int64_t block_bytes;
};

/// Null for a number that the format does not define.
const GgmlTypeInfo* find_ggml_type(uint32_t number);

/// "F32, F16, Q4_0, …": the types that can be decoded, for messages.
std::string decodable_ggml_types();

}  // namespace flashloom
