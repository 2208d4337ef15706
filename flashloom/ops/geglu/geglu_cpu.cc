#include "flashloom/ops/geglu/geglu_cpu.h"

#include <algorithm>

#include "flashloom/core/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "flashloom/ops/geglu/geglu_cpu.cc"
// clang-format off: the order matters
#include "hwy/foreach_target.h"
// clang-format on
#include "flashloom/ops/vector_math/exp-inl.h"
#include "flashloom/ops/vector_math/normal-inl.h"
#include "flashloom/ops/vector_math/storage-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {
namespace {

template <class V>
struct Gelu {
  V value;
  V slope;
};

template <GeluApproximation kApproximation, class D, class V = hn::Vec<D>>
HWY_INLINE Gelu<V> gelu(D d, V g) {
  if constexpr (kApproximation == GeluApproximation::none) {
    const auto n = normal_f32(d, g);
    return {hn::Mul(g, n.cumulative), hn::MulAdd(g, n.density, n.cumulative)};
  } else {
    // (1 + tanh x) / 2 is the logistic function of 2 x; 2 x = g (linear + cubic g^2). Where the
    // square is cut, the function has long been 0 or 1, and its slope, 0, would meet infinity.
    constexpr double kTwoC = 1.5957691216057308;  // 2 sqrt(2 / pi)
    constexpr auto kLinear = static_cast<float>(kTwoC);
    constexpr auto kCubic = static_cast<float>(kTwoC * 0.044715);
    const V square = hn::Min(hn::Mul(g, g), hn::Set(d, 1e6f));
    const V inner = hn::Mul(g, hn::MulAdd(square, hn::Set(d, kCubic), hn::Set(d, kLinear)));
    const V inner_slope = hn::MulAdd(square, hn::Set(d, 3 * kCubic), hn::Set(d, kLinear));
    const auto s = logistic_f32(d, inner);
    const V value = hn::Mul(g, s.value);
    return {value, hn::MulAdd(hn::Mul(value, s.complement), inner_slope, s.value)};
  }
}

template <GeluApproximation kApproximation, class T>
void forward_row(T* out, const T* gate, const T* up, size_t columns) {
  for_vectors(columns, [&](auto d, size_t i) HWY_ATTR {
    const auto g = gelu<kApproximation>(d, load_f32(d, gate + i));
    store_f32(d, hn::Mul(g.value, load_f32(d, up + i)), out + i);
  });
}

template <GeluApproximation kApproximation, class T>
void backward_row(T* dgate, T* dup, T* out, const T* dout, const T* gate, const T* up,
                  size_t columns) {
  for_vectors(columns, [&](auto d, size_t i) HWY_ATTR {
    const auto g = gelu<kApproximation>(d, load_f32(d, gate + i));
    const auto u = load_f32(d, up + i);
    const auto dh = load_f32(d, dout + i);
    store_f32(d, hn::Mul(hn::Mul(dh, u), g.slope), dgate + i);
    store_f32(d, hn::Mul(dh, g.value), dup + i);
    if (out != nullptr) {
      store_f32(d, hn::Mul(g.value, u), out + i);
    }
  });
}

template <GeluApproximation kApproximation, class T>
void forward_rows(const TensorView& out, const ConstTensorView& gate, const ConstTensorView& up,
                  int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    forward_row<kApproximation>(
        out.as<T>() + row * out.strides[0], gate.as<T>() + row * gate.strides[0],
        up.as<T>() + row * up.strides[0], static_cast<size_t>(gate.shape[1]));
  }
}

template <GeluApproximation kApproximation, class T>
void backward_rows(const TensorView& dgate, const TensorView& dup, const TensorView& out,
                   const ConstTensorView& dout, const ConstTensorView& gate,
                   const ConstTensorView& up, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    backward_row<kApproximation>(
        dgate.as<T>() + row * dgate.strides[0], dup.as<T>() + row * dup.strides[0],
        out ? out.as<T>() + row * out.strides[0] : nullptr, dout.as<T>() + row * dout.strides[0],
        gate.as<T>() + row * gate.strides[0], up.as<T>() + row * up.strides[0],
        static_cast<size_t>(gate.shape[1]));
  }
}

template <GeluApproximation kApproximation>
void forward_in(const TensorView& out, const ConstTensorView& gate, const ConstTensorView& up,
                int64_t first, int64_t last) {
  gate.dtype == DType::f32 ? forward_rows<kApproximation, float>(out, gate, up, first, last)
                           : forward_rows<kApproximation, bf16>(out, gate, up, first, last);
}

void forward_tile(const TensorView& out, const ConstTensorView& gate, const ConstTensorView& up,
                  GeluApproximation approximation, int64_t first, int64_t last) {
  approximation == GeluApproximation::none
      ? forward_in<GeluApproximation::none>(out, gate, up, first, last)
      : forward_in<GeluApproximation::tanh>(out, gate, up, first, last);
}

template <GeluApproximation kApproximation>
void backward_in(const TensorView& dgate, const TensorView& dup, const TensorView& out,
                 const ConstTensorView& dout, const ConstTensorView& gate,
                 const ConstTensorView& up, int64_t first, int64_t last) {
  gate.dtype == DType::f32
      ? backward_rows<kApproximation, float>(dgate, dup, out, dout, gate, up, first, last)
      : backward_rows<kApproximation, bf16>(dgate, dup, out, dout, gate, up, first, last);
}

void backward_tile(const TensorView& dgate, const TensorView& dup, const TensorView& out,
                   const ConstTensorView& dout, const ConstTensorView& gate,
                   const ConstTensorView& up, GeluApproximation approximation, int64_t first,
                   int64_t last) {
  approximation == GeluApproximation::none
      ? backward_in<GeluApproximation::none>(dgate, dup, out, dout, gate, up, first, last)
      : backward_in<GeluApproximation::tanh>(dgate, dup, out, dout, gate, up, first, last);
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

void geglu_forward_cpu(const TensorView& out, const ConstTensorView& gate,
                       const ConstTensorView& up, GeluApproximation approximation) {
  const int64_t rows = gate.shape[0];
  const int64_t tile = tile_rows(gate.shape[1]);
  parallel_for(tile_count(rows, tile), [&](int64_t i) {
    HWY_DYNAMIC_DISPATCH(forward_tile)(out, gate, up, approximation, i * tile,
                                       std::min(rows, (i + 1) * tile));
  });
}

void geglu_backward_cpu(const TensorView& dgate, const TensorView& dup, const TensorView& out,
                        const ConstTensorView& dout, const ConstTensorView& gate,
                        const ConstTensorView& up, GeluApproximation approximation) {
  const int64_t rows = gate.shape[0];
  const int64_t tile = tile_rows(gate.shape[1]);
  parallel_for(tile_count(rows, tile), [&](int64_t i) {
    HWY_DYNAMIC_DISPATCH(backward_tile)
    (dgate, dup, out, dout, gate, up, approximation, i * tile, std::min(rows, (i + 1) * tile));
  });
}

}  // namespace detail
}  // namespace flashloom
#endif  // HWY_ONCE
