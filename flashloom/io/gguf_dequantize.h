#pragma once

#include <cstddef>
#include <span>

#include "flashloom/core/block_format.h"
#include "flashloom/io/gguf_types.h"

namespace flashloom {

/// Decodes whole blocks of a GGUF tensor, at any alignment, to float32: F32, F16, BF16, Q4_0, Q4_1,
/// Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K (the block layouts of ggml). A row is a whole number of
/// blocks, so any range of rows is a subspan. Every product and sum is rounded once, in the order
/// of ggml's reference, so results are those of the `gguf` Python package bit for bit.
/// Throws InvalidArgument if the sizes do not match, Unsupported for other types.
void gguf_dequantize(GgmlType type, std::span<const std::byte> blocks, std::span<float> out);

/// The blocks of a quantised type as matrix products take them, with groups of 32 elements; null
/// for types of plain numbers and those that cannot be decoded. The numbers are
/// gguf_dequantize()'s.
const BlockFormat* gguf_block_format(GgmlType type);

}  // namespace flashloom
