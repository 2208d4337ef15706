#include "flashloom/ops/layer_norm/layer_norm_cpu.h"

#include <algorithm>
#include <cmath>

#include "flashloom/core/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "flashloom/ops/layer_norm/layer_norm_cpu.cc"
// clang-format off: the order matters
#include "hwy/foreach_target.h"
// clang-format on
#include "flashloom/ops/vector_math/storage-inl.h"
#include "flashloom/ops/vector_math/sum-inl.h"
#include "hwy/highway.h"

#ifndef FLASHLOOM_OPS_LAYER_NORM_LAYER_NORM_CPU_ARGUMENTS_
#define FLASHLOOM_OPS_LAYER_NORM_LAYER_NORM_CPU_ARGUMENTS_

namespace flashloom::detail {

struct LayerNormForwardArguments {
  TensorView out, sum;
  ConstTensorView input, residual;
  const void* weight;
  const void* bias;          // null if absent
  float* mean;               // null if not wanted
  float* inverse_deviation;  // null if not wanted
  DType weight_dtype;
  float epsilon;
};

struct LayerNormBackwardArguments {
  TensorView dinput;
  ConstTensorView dout, dresidual, input;
  const void* weight;
  const float* mean;
  const float* inverse_deviation;
  DType weight_dtype;
};

}  // namespace flashloom::detail
#endif

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {
namespace {

using detail::LayerNormBackwardArguments;
using detail::LayerNormForwardArguments;

template <class T>
const T* row_of(const ConstTensorView& view, int64_t row) {
  return view.as<T>() + row * view.strides[0];
}

template <class T>
T* row_of(const TensorView& view, int64_t row) {
  return view.as<T>() + row * view.strides[0];
}

// The first sum also adds the residual; the second, of squares of what is left after the mean is
// subtracted, loses nothing to a mean that is large beside the deviation. Rows stay in the first
// cache meanwhile.
template <class T, class W>
void forward_rows(const LayerNormForwardArguments& a, int64_t first, int64_t last) {
  const auto columns = static_cast<size_t>(a.input.shape[1]);
  const auto count = static_cast<float>(columns);
  const W* weight = static_cast<const W*>(a.weight);
  const W* bias = static_cast<const W*>(a.bias);
  for (int64_t row = first; row < last; ++row) {
    const T* x = row_of<T>(a.input, row);
    float total;
    if (a.residual) {
      const T* residual = row_of<T>(a.residual, row);
      T* sum = row_of<T>(a.sum, row);
      total = sum_of(columns, [&](auto d, size_t i, auto so_far) HWY_ATTR {
        store_f32(d, hn::Add(load_f32(d, x + i), load_f32(d, residual + i)), sum + i);
        return hn::Add(so_far, load_f32(d, sum + i));
      });
      x = sum;
    } else {
      total = sum_of(columns, [&](auto d, size_t i, auto so_far)
                                  HWY_ATTR { return hn::Add(so_far, load_f32(d, x + i)); });
    }
    const float m = total / count;
    const float squares = sum_of(columns, [&](auto d, size_t i, auto so_far) HWY_ATTR {
      const auto centred = hn::Sub(load_f32(d, x + i), hn::Set(d, m));
      return hn::MulAdd(centred, centred, so_far);
    });
    const float r = 1.0f / std::sqrt(squares / count + a.epsilon);
    if (a.mean != nullptr) {
      a.mean[row] = m;
    }
    if (a.inverse_deviation != nullptr) {
      a.inverse_deviation[row] = r;
    }
    T* out = row_of<T>(a.out, row);
    for_vectors(columns, [&](auto d, size_t i) HWY_ATTR {
      const auto centred = hn::Sub(load_f32(d, x + i), hn::Set(d, m));
      const auto scaled = hn::Mul(centred, hn::Set(d, r));
      const auto shift = bias != nullptr ? load_f32(d, bias + i) : hn::Zero(d);
      store_f32(d, hn::MulAdd(scaled, load_f32(d, weight + i), shift), out + i);
    });
  }
}

void forward_tile(const LayerNormForwardArguments& a, int64_t first, int64_t last) {
  const bool wide = a.weight_dtype == DType::f32;
  if (a.input.dtype == DType::f32) {
    wide ? forward_rows<float, float>(a, first, last) : forward_rows<float, bf16>(a, first, last);
  } else {
    wide ? forward_rows<bf16, float>(a, first, last) : forward_rows<bf16, bf16>(a, first, last);
  }
}

// dweight, dbias: null, or the tile's own sums, which start at zero.
template <class T, class W>
void backward_rows(const LayerNormBackwardArguments& a, float* dweight, float* dbias, int64_t first,
                   int64_t last) {
  const auto columns = static_cast<size_t>(a.input.shape[1]);
  const auto count = static_cast<float>(columns);
  const W* weight = static_cast<const W*>(a.weight);
  for (int64_t row = first; row < last; ++row) {
    const T* x = row_of<T>(a.input, row);
    const T* dy = row_of<T>(a.dout, row);
    const T* other = a.dresidual ? row_of<T>(a.dresidual, row) : nullptr;
    T* dx = row_of<T>(a.dinput, row);
    const float m = a.mean[row];
    const float r = a.inverse_deviation[row];
    const float gradients = sum_of(columns, [&](auto d, size_t i, auto so_far) HWY_ATTR {
      return hn::MulAdd(load_f32(d, dy + i), load_f32(d, weight + i), so_far);
    });
    const float products = sum_of(columns, [&](auto d, size_t i, auto so_far) HWY_ATTR {
      const auto g = hn::Mul(load_f32(d, dy + i), load_f32(d, weight + i));
      const auto normal = hn::Mul(hn::Sub(load_f32(d, x + i), hn::Set(d, m)), hn::Set(d, r));
      return hn::MulAdd(g, normal, so_far);
    });
    const float common = gradients / count;
    const float along = products / count;
    for_vectors(columns, [&](auto d, size_t i) HWY_ATTR {
      const auto dy_i = load_f32(d, dy + i);
      const auto scale = hn::Set(d, r);
      const auto normal = hn::Mul(hn::Sub(load_f32(d, x + i), hn::Set(d, m)), scale);
      const auto g = hn::MulSub(dy_i, load_f32(d, weight + i), hn::Set(d, common));
      auto result = hn::Mul(hn::NegMulAdd(normal, hn::Set(d, along), g), scale);
      if (other != nullptr) {
        result = hn::Add(result, load_f32(d, other + i));
      }
      if (dweight != nullptr) {
        hn::StoreU(hn::MulAdd(dy_i, normal, hn::LoadU(d, dweight + i)), d, dweight + i);
      }
      if (dbias != nullptr) {
        hn::StoreU(hn::Add(dy_i, hn::LoadU(d, dbias + i)), d, dbias + i);
      }
      store_f32(d, result, dx + i);
    });
  }
}

void backward_tile(const LayerNormBackwardArguments& a, float* dweight, float* dbias, int64_t first,
                   int64_t last) {
  const bool wide = a.weight_dtype == DType::f32;
  if (a.input.dtype == DType::f32) {
    wide ? backward_rows<float, float>(a, dweight, dbias, first, last)
         : backward_rows<float, bf16>(a, dweight, dbias, first, last);
  } else {
    wide ? backward_rows<bf16, float>(a, dweight, dbias, first, last)
         : backward_rows<bf16, bf16>(a, dweight, dbias, first, last);
  }
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

// Elements of a forward tile: some 20 µs of work, against 2 µs to hand it out.
constexpr int64_t kTileElements = 32768;

// Columns of a sum of partials that one task adds up: a cache line of each and more.
constexpr int64_t kColumnTile = 256;

// total += the `tiles` partial sums that stand `stride` apart, in their order.
void add_partials(const TensorView& total, const float* partials, int64_t tiles, int64_t stride) {
  if (!total) {
    return;
  }
  const int64_t columns = total.dim(0);
  float* sum = total.as<float>();
  parallel_for(tile_count(columns, kColumnTile), [&](int64_t c) {
    const int64_t last = std::min(columns, (c + 1) * kColumnTile);
    for (int64_t i = 0; i < tiles; ++i) {
      for (int64_t column = c * kColumnTile; column < last; ++column) {
        sum[column] += partials[i * stride + column];
      }
    }
  });
}

}  // namespace

void layer_norm_forward_cpu(const TensorView& out, const TensorView& mean,
                            const TensorView& inverse_deviation, const TensorView& sum,
                            const ConstTensorView& input, const ConstTensorView& residual,
                            const ConstTensorView& weight, const ConstTensorView& bias,
                            float epsilon) {
  const LayerNormForwardArguments arguments = {
      .out = out,
      .sum = sum,
      .input = input,
      .residual = residual,
      .weight = weight.data,
      .bias = bias ? bias.data : nullptr,
      .mean = mean ? mean.as<float>() : nullptr,
      .inverse_deviation = inverse_deviation ? inverse_deviation.as<float>() : nullptr,
      .weight_dtype = weight.dtype,
      .epsilon = epsilon,
  };
  const int64_t rows = input.dim(0);
  const int64_t tile = std::max<int64_t>(1, kTileElements / input.dim(1));
  parallel_for(tile_count(rows, tile), [&](int64_t i) {
    HWY_DYNAMIC_DISPATCH(forward_tile)(arguments, i * tile, std::min(rows, (i + 1) * tile));
  });
}

int64_t layer_norm_backward_tile_rows(int64_t rows) {
  return std::max<int64_t>(32, tile_count(rows, 64));
}

void layer_norm_backward_cpu(const TensorView& dinput, const TensorView& dweight,
                             const TensorView& dbias, const ConstTensorView& dout,
                             const ConstTensorView& dresidual, const ConstTensorView& input,
                             const ConstTensorView& mean, const ConstTensorView& inverse_deviation,
                             const ConstTensorView& weight, float* workspace) {
  const LayerNormBackwardArguments arguments = {
      .dinput = dinput,
      .dout = dout,
      .dresidual = dresidual,
      .input = input,
      .weight = weight.data,
      .mean = mean.as<float>(),
      .inverse_deviation = inverse_deviation.as<float>(),
      .weight_dtype = weight.dtype,
  };
  const int64_t rows = input.dim(0);
  const int64_t columns = input.dim(1);
  const int64_t tile = layer_norm_backward_tile_rows(rows);
  const int64_t tiles = tile_count(rows, tile);
  parallel_for(tiles, [&](int64_t i) {
    // A tile's dweight and dbias stand side by side.
    float* partial = workspace + 2 * i * columns;
    if (dweight || dbias) {
      std::fill_n(partial, 2 * columns, 0.0f);
    }
    HWY_DYNAMIC_DISPATCH(backward_tile)
    (arguments, dweight ? partial : nullptr, dbias ? partial + columns : nullptr, i * tile,
     std::min(rows, (i + 1) * tile));
  });
  add_partials(dweight, workspace, tiles, 2 * columns);
  add_partials(dbias, workspace + columns, tiles, 2 * columns);
}

}  // namespace detail
}  // namespace flashloom
#endif  // HWY_ONCE
