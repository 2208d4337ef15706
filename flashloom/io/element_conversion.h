#pragma once

#include <cstddef>
#include <cstdint>

#include "flashloom/core/dtype.h"

namespace flashloom {

/// True for the types below: f32, f64, bf16, f16.
bool is_convertible(DType dtype);

/// `count` numbers of type `from`, at any alignment, as float32 (f64 is rounded).
void decode_to_f32(DType from, const std::byte* source, int64_t count, float* out);

/// The reverse, to f32, bf16 or f16 (round to nearest even), at any alignment.
void encode_from_f32(DType to, const float* source, int64_t count, std::byte* out);

}  // namespace flashloom
