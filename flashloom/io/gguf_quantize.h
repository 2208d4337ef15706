#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include "flashloom/io/gguf_types.h"

namespace flashloom {

/// True for the types that gguf_quantize() writes: F32, F16, BF16, Q8_0, Q5_0, Q4_0, Q4_K.
bool can_quantize(GgmlType type);

/// Encodes rows of float32 as whole blocks of a GGUF tensor: the reverse of gguf_dequantize(), by
/// the rounding of ggml's reference functions, bit for bit (what llama-quantize writes without an
/// importance matrix). F16 and BF16 round to nearest even. Values must be finite.
/// Throws InvalidArgument if the sizes do not match, Unsupported for other types.
void gguf_quantize(GgmlType type, std::span<const float> values, std::span<std::byte> blocks);

}  // namespace flashloom
