#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "flashloom/core/tensor_view.h"
#include "flashloom/io/gguf_types.h"

namespace flashloom {

/// A tensor as some file stores it: rows of a plain dtype or of ggml blocks.
struct EncodedTensor {
  std::span<const std::byte> bytes;
  std::optional<DType> dtype;          // plain elements, at any alignment, or
  const GgmlTypeInfo* ggml = nullptr;  // ggml blocks
  /// If not 0, rows are this many heads, each with its two halves interleaved (permuted_heads).
  int64_t interleaved_heads = 0;
};

/// False for types without floating-point values and those that are not implemented.
bool can_decode(const EncodedTensor& tensor);

/// Decodes into `out` (f32, bf16 or f16, of the tensor's shape; at most the first of two dimensions
/// strided), in parallel over tiles of rows. With `find_bad`, returns the first row of `out` that
/// holds a NaN or an infinity (as decoded, before it is rounded). The bytes must be as many as the
/// shape needs. Throws InvalidArgument for other views.
std::optional<int64_t> decode_tensor(const EncodedTensor& tensor, TensorView out, bool find_bad);

}  // namespace flashloom
