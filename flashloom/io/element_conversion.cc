#include "flashloom/io/element_conversion.h"

#include <cstring>

#include "flashloom/core/error.h"

namespace flashloom {
namespace {

template <class T>
void decode(const std::byte* source, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    T value;
    std::memcpy(&value, source + i * static_cast<int64_t>(sizeof(T)), sizeof(T));
    out[i] = static_cast<float>(value);
  }
}

template <class T>
void encode(const float* source, int64_t count, std::byte* out) {
  for (int64_t i = 0; i < count; ++i) {
    const T value(source[i]);
    std::memcpy(out + i * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
  }
}

}  // namespace

bool is_convertible(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f64 || dtype == DType::bf16 || dtype == DType::f16;
}

void decode_to_f32(DType from, const std::byte* source, int64_t count, float* out) {
  switch (from) {
    case DType::f32:
      if (count > 0) {
        std::memcpy(out, source, static_cast<size_t>(count) * sizeof(float));
      }
      return;
    case DType::f64:
      return decode<double>(source, count, out);
    case DType::bf16:
      return decode<bf16>(source, count, out);
    case DType::f16:
      return decode<f16>(source, count, out);
    default:
      throw InvalidArgument("decode_to_f32", "from", "f32, f64, bf16 or f16", dtype_name(from));
  }
}

void encode_from_f32(DType to, const float* source, int64_t count, std::byte* out) {
  switch (to) {
    case DType::f32:
      if (count > 0) {
        std::memcpy(out, source, static_cast<size_t>(count) * sizeof(float));
      }
      return;
    case DType::bf16:
      return encode<bf16>(source, count, out);
    case DType::f16:
      return encode<f16>(source, count, out);
    default:
      throw InvalidArgument("encode_from_f32", "to", "f32, bf16 or f16", dtype_name(to));
  }
}

}  // namespace flashloom
