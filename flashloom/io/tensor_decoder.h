#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "flashloom/core/block_format.h"
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

/// Copies the blocks of a matrix of `shape` (whose data is not used), rows in Hugging Face's order,
/// in parallel. Returns the first row that holds a NaN or an infinity.
std::optional<int64_t> copy_blocks(const EncodedTensor& tensor, const BlockMatrix& shape,
                                   std::byte* out);

/// Where row `row` of a tensor whose heads have their halves one behind the other lies in a file
/// that interleaves them: row h·d + 2i + half for row h·d + half·d/2 + i. `heads` 0: `row` itself.
int64_t interleaved_row(int64_t row, int64_t rows, int64_t heads);

/// The reverse: which row stands in place `stored` of such a file.
int64_t half_split_row(int64_t stored, int64_t rows, int64_t heads);

}  // namespace flashloom
