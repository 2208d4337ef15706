#include "flashloom/ops/swiglu/swiglu_cpu.h"

#include <algorithm>

#include "flashloom/core/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "flashloom/ops/swiglu/swiglu_cpu.cc"
// clang-format off: the order matters
#include "hwy/foreach_target.h"
// clang-format on
#include "flashloom/ops/vector_math/exp-inl.h"
#include "flashloom/ops/vector_math/storage-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {
namespace {

template <class T>
void forward_row(T* out, const T* gate, const T* up, size_t columns) {
  for_vectors(columns, [&](auto d, size_t i) HWY_ATTR {
    const auto g = load_f32(d, gate + i);
    const auto silu = hn::Mul(g, logistic_f32(d, g).value);
    store_f32(d, hn::Mul(silu, load_f32(d, up + i)), out + i);
  });
}

template <class T>
void backward_row(T* dgate, T* dup, T* out, const T* dout, const T* gate, const T* up,
                  size_t columns) {
  for_vectors(columns, [&](auto d, size_t i) HWY_ATTR {
    const auto g = load_f32(d, gate + i);
    const auto u = load_f32(d, up + i);
    const auto dh = load_f32(d, dout + i);
    const auto s = logistic_f32(d, g);
    const auto silu = hn::Mul(g, s.value);
    const auto slope = hn::MulAdd(silu, s.complement, s.value);  // s (1 + g (1 - s))
    store_f32(d, hn::Mul(hn::Mul(dh, u), slope), dgate + i);
    store_f32(d, hn::Mul(dh, silu), dup + i);
    if (out != nullptr) {
      store_f32(d, hn::Mul(silu, u), out + i);
    }
  });
}

template <class T>
void forward_rows(const TensorView& out, const ConstTensorView& gate, const ConstTensorView& up,
                  int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    forward_row(out.as<T>() + row * out.strides[0], gate.as<T>() + row * gate.strides[0],
                up.as<T>() + row * up.strides[0], static_cast<size_t>(gate.shape[1]));
  }
}

template <class T>
void backward_rows(const TensorView& dgate, const TensorView& dup, const TensorView& out,
                   const ConstTensorView& dout, const ConstTensorView& gate,
                   const ConstTensorView& up, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    backward_row(dgate.as<T>() + row * dgate.strides[0], dup.as<T>() + row * dup.strides[0],
                 out ? out.as<T>() + row * out.strides[0] : nullptr,
                 dout.as<T>() + row * dout.strides[0], gate.as<T>() + row * gate.strides[0],
                 up.as<T>() + row * up.strides[0], static_cast<size_t>(gate.shape[1]));
  }
}

void forward_tile(const TensorView& out, const ConstTensorView& gate, const ConstTensorView& up,
                  int64_t first, int64_t last) {
  gate.dtype == DType::f32 ? forward_rows<float>(out, gate, up, first, last)
                           : forward_rows<bf16>(out, gate, up, first, last);
}

void backward_tile(const TensorView& dgate, const TensorView& dup, const TensorView& out,
                   const ConstTensorView& dout, const ConstTensorView& gate,
                   const ConstTensorView& up, int64_t first, int64_t last) {
  gate.dtype == DType::f32 ? backward_rows<float>(dgate, dup, out, dout, gate, up, first, last)
                           : backward_rows<bf16>(dgate, dup, out, dout, gate, up, first, last);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashloom {

HWY_EXPORT(forward_tile);
HWY_EXPORT(backward_tile);

namespace detail {
namespace {

// Rows of a tile: about 16,384 elements, some 10 µs of work, against 2 µs to hand it out.
int64_t tile_rows(int64_t columns) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, columns));
}

}  // namespace

void swiglu_forward_cpu(const TensorView& out, const ConstTensorView& gate,
                        const ConstTensorView& up) {
  const int64_t rows = gate.shape[0];
  const int64_t tile = tile_rows(gate.shape[1]);
  parallel_for(tile_count(rows, tile), [&](int64_t i) {
    HWY_DYNAMIC_DISPATCH(forward_tile)(out, gate, up, i * tile, std::min(rows, (i + 1) * tile));
  });
}

void swiglu_backward_cpu(const TensorView& dgate, const TensorView& dup, const TensorView& out,
                         const ConstTensorView& dout, const ConstTensorView& gate,
                         const ConstTensorView& up) {
  const int64_t rows = gate.shape[0];
  const int64_t tile = tile_rows(gate.shape[1]);
  parallel_for(tile_count(rows, tile), [&](int64_t i) {
    HWY_DYNAMIC_DISPATCH(backward_tile)
    (dgate, dup, out, dout, gate, up, i * tile, std::min(rows, (i + 1) * tile));
  });
}

}  // namespace detail
}  // namespace flashloom
#endif  // HWY_ONCE
