#include "flashloom/ops/embedding/embedding_cpu.h"

#include <algorithm>
#include <cstring>

#include "flashloom/core/parallel.h"

namespace flashloom::detail {
namespace {

// Tokens of a tile of the forward pass: some 10 µs of copying for C near 600.
constexpr int64_t kTokenTile = 32;

// Columns of a tile of the backward pass. Each tile walks all tokens in order, so that equal ids
// are added in order without a sort; 512 bytes are enough for the prefetcher to pay.
constexpr int64_t kColumnTile = 128;

template <class Out, class In>
void copy_row(Out* out, const In* row, int64_t columns) {
  if constexpr (std::is_same_v<Out, In>) {
    std::memcpy(out, row, static_cast<size_t>(columns) * sizeof(Out));
  } else {
    for (int64_t c = 0; c < columns; ++c) {
      out[c] = Out(static_cast<float>(row[c]));
    }
  }
}

template <class Out, class In>
void forward(const TensorView& out, const ConstTensorView& table, const int32_t* tokens) {
  const int64_t count = out.shape[0];
  parallel_for(tile_count(count, kTokenTile), [&](int64_t tile) {
    for (int64_t t = tile * kTokenTile; t < std::min(count, (tile + 1) * kTokenTile); ++t) {
      copy_row(out.as<Out>() + t * out.strides[0], table.as<In>() + tokens[t] * table.strides[0],
               out.shape[1]);
    }
  });
}

template <class In>
void backward(const TensorView& dtable, const ConstTensorView& dout, const int32_t* tokens) {
  const int64_t columns = dout.shape[1];
  parallel_for(tile_count(columns, kColumnTile), [&](int64_t tile) {
    const int64_t first = tile * kColumnTile;
    const int64_t count = std::min(kColumnTile, columns - first);
    for (int64_t t = 0; t < dout.shape[0]; ++t) {
      const In* from = dout.as<In>() + t * dout.strides[0] + first;
      float* to = dtable.as<float>() + tokens[t] * dtable.strides[0] + first;
      for (int64_t c = 0; c < count; ++c) {
        to[c] += static_cast<float>(from[c]);
      }
    }
  });
}

}  // namespace

void embedding_forward_cpu(const TensorView& out, const ConstTensorView& table,
                           const ConstTensorView& tokens) {
  const auto* ids = tokens.as<int32_t>();
  if (out.dtype == DType::f32) {
    table.dtype == DType::f32 ? forward<float, float>(out, table, ids)
                              : forward<float, bf16>(out, table, ids);
  } else {
    table.dtype == DType::f32 ? forward<bf16, float>(out, table, ids)
                              : forward<bf16, bf16>(out, table, ids);
  }
}

void embedding_backward_cpu(const TensorView& dtable, const ConstTensorView& dout,
                            const ConstTensorView& tokens) {
  const auto* ids = tokens.as<int32_t>();
  dout.dtype == DType::f32 ? backward<float>(dtable, dout, ids) : backward<bf16>(dtable, dout, ids);
}

}  // namespace flashloom::detail
