#include "flashloom/io/tensor_decoder.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstring>

#include "flashloom/core/check.h"
#include "flashloom/core/function_ref.h"
#include "flashloom/core/parallel.h"
#include "flashloom/io/element_conversion.h"
#include "flashloom/io/gguf_dequantize.h"

namespace flashloom {
namespace {

constexpr std::string_view kOp = "decode_tensor";
constexpr int64_t kTileElements = 1 << 16;   // a task: some tens of microseconds
constexpr int64_t kChunkElements = 1 << 12;  // f32 scratch of 16 KB, a multiple of every block

// `out` and the stored bytes as a matrix.
struct Matrix {
  int64_t rows;
  int64_t columns;
  int64_t row_bytes;   // stored
  int64_t out_stride;  // elements
  int64_t block;       // elements a stored block
  int64_t block_bytes;
};

Matrix as_matrix(const EncodedTensor& tensor, const TensorView& out) {
  check_cpu(kOp, "out", out);
  check_dtype(kOp, "out", out, {DType::f32, DType::bf16, DType::f16});
  if (out.rank == 2) {
    check_last_contiguous(kOp, "out", out);
  } else {
    check_contiguous(kOp, "out", out);
  }
  Matrix matrix = {};
  // The rows of a vector that is stored interleaved are its elements.
  const bool split = out.rank == 1 && tensor.interleaved_heads > 0;
  matrix.columns = split || out.rank == 0 ? 1 : out.dim(-1);
  matrix.rows = matrix.columns == 0 ? 0 : out.size() / matrix.columns;
  matrix.out_stride = out.rank == 2 ? out.stride(0) : matrix.columns;
  matrix.block = tensor.dtype ? 1 : tensor.ggml->block_elements;
  matrix.block_bytes =
      tensor.dtype ? static_cast<int64_t>(dtype_bytes(*tensor.dtype)) : tensor.ggml->block_bytes;
  check(matrix.columns % matrix.block == 0, kOp, "tensor", "rows of whole blocks",
        fmt::format("rows of {}", matrix.columns));
  matrix.row_bytes = matrix.columns / matrix.block * matrix.block_bytes;
  check(static_cast<int64_t>(tensor.bytes.size()) == matrix.rows * matrix.row_bytes, kOp, "tensor",
        fmt::format("{} bytes", matrix.rows * matrix.row_bytes),
        fmt::format("{}", tensor.bytes.size()));
  const int64_t heads = tensor.interleaved_heads;
  check(heads == 0 || matrix.rows % (2 * heads) == 0, kOp, "tensor", "rows of heads of even size",
        fmt::format("{} rows", matrix.rows));
  return matrix;
}

void decode(const EncodedTensor& tensor, const std::byte* source, int64_t bytes, float* out,
            int64_t count) {
  if (tensor.dtype) {
    decode_to_f32(*tensor.dtype, source, count, out);
  } else {
    gguf_dequantize(static_cast<GgmlType>(tensor.ggml->number),
                    {source, static_cast<size_t>(bytes)}, {out, static_cast<size_t>(count)});
  }
}

// NaN and infinities have all exponent bits set. Written without a branch, for SIMD.
bool all_finite(const float* values, int64_t count) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto bits = std::bit_cast<uint32_t>(values[i]);
    bad |= static_cast<uint32_t>((bits & 0x7f800000u) == 0x7f800000u);
  }
  return bad == 0;
}

// One row; true if all its values are finite or nobody asks.
bool decode_row(const EncodedTensor& tensor, const Matrix& matrix, const std::byte* source,
                DType to, std::byte* out, bool find_bad) {
  const bool same = tensor.dtype == to ||
                    (tensor.ggml != nullptr && tensor.ggml->name == "BF16" && to == DType::bf16) ||
                    (tensor.ggml != nullptr && tensor.ggml->name == "F16" && to == DType::f16);
  if (same && !find_bad) {
    std::memcpy(out, source, static_cast<size_t>(matrix.row_bytes));
    return true;
  }
  bool finite = true;
  std::array<float, kChunkElements> scratch;
  for (int64_t first = 0; first < matrix.columns; first += kChunkElements) {
    const int64_t count = std::min(kChunkElements, matrix.columns - first);
    const std::byte* blocks = source + first / matrix.block * matrix.block_bytes;
    std::byte* target = out + first * static_cast<int64_t>(dtype_bytes(to));
    float* wide = to == DType::f32 ? reinterpret_cast<float*>(target) : scratch.data();
    decode(tensor, blocks, count / matrix.block * matrix.block_bytes, wide, count);
    finite = finite && (!find_bad || all_finite(wide, count));
    if (to != DType::f32) {
      encode_from_f32(to, wide, count, target);
    }
  }
  return finite;
}

// Calls good(row) for every row, tiles of rows in parallel; the first row for which it is false.
std::optional<int64_t> first_bad_row(int64_t rows, int64_t columns,
                                     FunctionRef<bool(int64_t)> good) {
  const int64_t tile = std::max<int64_t>(1, kTileElements / columns);
  std::atomic<int64_t> first_bad = rows;
  parallel_for(tile_count(rows, tile), [&](int64_t index) {
    for (int64_t row = index * tile; row < std::min(rows, (index + 1) * tile); ++row) {
      if (!good(row)) {
        int64_t known = first_bad;
        while (row < known && !first_bad.compare_exchange_weak(known, row)) {
        }
      }
    }
  });
  const int64_t bad = first_bad;
  return bad < rows ? std::optional(bad) : std::nullopt;
}

}  // namespace

int64_t interleaved_row(int64_t row, int64_t rows, int64_t heads) {
  if (heads == 0) {
    return row;
  }
  const int64_t head_dim = rows / heads;
  const int64_t within = row % head_dim;
  const int64_t half = within / (head_dim / 2);
  const int64_t pair = within % (head_dim / 2);
  return row - within + 2 * pair + half;
}

int64_t half_split_row(int64_t stored, int64_t rows, int64_t heads) {
  if (heads == 0) {
    return stored;
  }
  const int64_t head_dim = rows / heads;
  const int64_t within = stored % head_dim;
  return stored - within + within % 2 * (head_dim / 2) + within / 2;
}

bool can_decode(const EncodedTensor& tensor) {
  return tensor.dtype ? is_convertible(*tensor.dtype)
                      : tensor.ggml != nullptr && tensor.ggml->decodable;
}

std::optional<int64_t> decode_tensor(const EncodedTensor& tensor, TensorView out, bool find_bad) {
  check(can_decode(tensor), kOp, "tensor", "a type that can be decoded", "another");
  const Matrix matrix = as_matrix(tensor, out);
  if (matrix.rows == 0 || matrix.columns == 0) {
    return std::nullopt;
  }
  auto* target = static_cast<std::byte*>(out.data);
  const auto width = static_cast<int64_t>(dtype_bytes(out.dtype));
  return first_bad_row(matrix.rows, matrix.columns, [&](int64_t row) {
    const int64_t stored = interleaved_row(row, matrix.rows, tensor.interleaved_heads);
    return decode_row(tensor, matrix, tensor.bytes.data() + stored * matrix.row_bytes, out.dtype,
                      target + row * matrix.out_stride * width, find_bad);
  });
}

std::optional<int64_t> copy_blocks(const EncodedTensor& tensor, const BlockMatrix& shape,
                                   std::byte* out) {
  check(shape.format != nullptr && static_cast<int64_t>(tensor.bytes.size()) == shape.bytes(), kOp,
        "tensor", "the bytes of its blocks", fmt::format("{}", tensor.bytes.size()));
  const int64_t bytes = shape.row_bytes();
  return first_bad_row(shape.rows, shape.columns, [&](int64_t row) {
    const int64_t stored = interleaved_row(row, shape.rows, tensor.interleaved_heads);
    std::byte* target = out + row * bytes;
    std::memcpy(target, tensor.bytes.data() + stored * bytes, static_cast<size_t>(bytes));
    bool finite = true;
    std::array<float, kChunkElements> scratch;
    for (int64_t first = 0; first < shape.columns; first += kChunkElements) {
      const int64_t count = std::min(kChunkElements, shape.columns - first);
      shape.format->decode(target, first, count, scratch.data());
      finite = finite && all_finite(scratch.data(), count);
    }
    return finite;
  });
}

}  // namespace flashloom
