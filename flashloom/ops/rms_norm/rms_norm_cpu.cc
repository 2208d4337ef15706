#include "flashloom/ops/rms_norm/rms_norm_cpu.h"

#include <algorithm>
#include <cmath>

#include "flashloom/core/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "flashloom/ops/rms_norm/rms_norm_cpu.cc"
// clang-format off: the order matters
#include "hwy/foreach_target.h"
// clang-format on
#include "flashloom/ops/vector_math/storage-inl.h"
#include "flashloom/ops/vector_math/sum-inl.h"
#include "hwy/highway.h"

#ifndef FLASHLOOM_OPS_RMS_NORM_RMS_NORM_CPU_ROWS_
#define FLASHLOOM_OPS_RMS_NORM_RMS_NORM_CPU_ROWS_

namespace flashloom::detail {

// Rows of a (rows, N) or (T, H, N) tensor by one number. Absent if data is null.
struct Rows {
  std::byte* data = nullptr;
  int64_t inner = 1;         // rows that follow one another at inner_stride: H, or 1
  int64_t outer_stride = 0;  // bytes
  int64_t inner_stride = 0;  // bytes

  Rows() = default;

  explicit Rows(const ConstTensorView& view)
      : data(static_cast<std::byte*>(const_cast<void*>(view.data))) {
    const auto bytes = static_cast<int64_t>(dtype_bytes(view.dtype));
    outer_stride = view.strides[0] * bytes;
    if (view.rank == 3) {
      inner = view.shape[1];
      inner_stride = view.strides[1] * bytes;
    }
  }

  template <class T>
  T* row(int64_t index) const {
    return reinterpret_cast<T*>(data + index / inner * outer_stride + index % inner * inner_stride);
  }
};

struct RmsNormForwardArguments {
  Rows out, sum, input, residual;
  const void* weight;
  float* inverse_rms;  // null if not wanted
  DType dtype, weight_dtype;
  int64_t columns;
  float epsilon;
};

struct RmsNormBackwardArguments {
  Rows dinput, dout, dresidual, input;
  const void* weight;
  const float* inverse_rms;
  DType dtype, weight_dtype;
  int64_t columns;
};

}  // namespace flashloom::detail
#endif

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {
namespace {

using detail::RmsNormBackwardArguments;
using detail::RmsNormForwardArguments;

template <class T, class W>
void forward_rows(const RmsNormForwardArguments& a, int64_t first, int64_t last) {
  const auto columns = static_cast<size_t>(a.columns);
  const W* weight = static_cast<const W*>(a.weight);
  for (int64_t row = first; row < last; ++row) {
    const T* x = a.input.row<const T>(row);
    float squares;
    if (a.residual.data != nullptr) {
      const T* residual = a.residual.row<const T>(row);
      T* sum = a.sum.row<T>(row);
      squares = sum_of(columns, [&](auto d, size_t i, auto total) HWY_ATTR {
        store_f32(d, hn::Add(load_f32(d, x + i), load_f32(d, residual + i)), sum + i);
        const auto v = load_f32(d, sum + i);
        return hn::MulAdd(v, v, total);
      });
      x = sum;
    } else {
      squares = sum_of(columns, [&](auto d, size_t i, auto total) HWY_ATTR {
        const auto v = load_f32(d, x + i);
        return hn::MulAdd(v, v, total);
      });
    }
    const float r = 1.0f / std::sqrt(squares / static_cast<float>(columns) + a.epsilon);
    if (a.inverse_rms != nullptr) {
      a.inverse_rms[row] = r;
    }
    T* out = a.out.row<T>(row);
    for_vectors(columns, [&](auto d, size_t i) HWY_ATTR {
      const auto scaled = hn::Mul(load_f32(d, x + i), hn::Set(d, r));
      store_f32(d, hn::Mul(scaled, load_f32(d, weight + i)), out + i);
    });
  }
}

void forward_tile(const RmsNormForwardArguments& a, int64_t first, int64_t last) {
  const bool wide = a.weight_dtype == DType::f32;
  if (a.dtype == DType::f32) {
    wide ? forward_rows<float, float>(a, first, last) : forward_rows<float, bf16>(a, first, last);
  } else {
    wide ? forward_rows<bf16, float>(a, first, last) : forward_rows<bf16, bf16>(a, first, last);
  }
}

// dweight: null, or the tile's own sum, which starts at zero.
template <class T, class W>
void backward_rows(const RmsNormBackwardArguments& a, float* dweight, int64_t first, int64_t last) {
  const auto columns = static_cast<size_t>(a.columns);
  const W* weight = static_cast<const W*>(a.weight);
  for (int64_t row = first; row < last; ++row) {
    const T* x = a.input.row<const T>(row);
    const T* dy = a.dout.row<const T>(row);
    const T* other = a.dresidual.data != nullptr ? a.dresidual.row<const T>(row) : nullptr;
    T* dx = a.dinput.row<T>(row);
    const float r = a.inverse_rms[row];
    const float product = sum_of(columns, [&](auto d, size_t i, auto total) HWY_ATTR {
      const auto m = hn::Mul(load_f32(d, dy + i), load_f32(d, weight + i));
      return hn::MulAdd(m, load_f32(d, x + i), total);
    });
    const float along = -r * r * r * (product / static_cast<float>(columns));
    for_vectors(columns, [&](auto d, size_t i) HWY_ATTR {
      const auto dy_i = load_f32(d, dy + i);
      const auto x_i = load_f32(d, x + i);
      const auto scale = hn::Set(d, r);
      auto result = hn::Mul(hn::Mul(dy_i, load_f32(d, weight + i)), scale);
      result = hn::MulAdd(x_i, hn::Set(d, along), result);
      if (other != nullptr) {
        result = hn::Add(result, load_f32(d, other + i));
      }
      if (dweight != nullptr) {
        const auto sum = hn::MulAdd(dy_i, hn::Mul(x_i, scale), hn::LoadU(d, dweight + i));
        hn::StoreU(sum, d, dweight + i);
      }
      store_f32(d, result, dx + i);
    });
  }
}

void backward_tile(const RmsNormBackwardArguments& a, float* dweight, int64_t first, int64_t last) {
  const bool wide = a.weight_dtype == DType::f32;
  if (a.dtype == DType::f32) {
    wide ? backward_rows<float, float>(a, dweight, first, last)
         : backward_rows<float, bf16>(a, dweight, first, last);
  } else {
    wide ? backward_rows<bf16, float>(a, dweight, first, last)
         : backward_rows<bf16, bf16>(a, dweight, first, last);
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

// Columns of dweight that one task adds up: a cache line of each partial sum and more.
constexpr int64_t kColumnTile = 256;

}  // namespace

void rms_norm_forward_cpu(const TensorView& out, const TensorView& inverse_rms,
                          const TensorView& sum, const ConstTensorView& input,
                          const ConstTensorView& residual, const ConstTensorView& weight,
                          float epsilon) {
  const int64_t columns = input.dim(-1);
  const int64_t rows = input.size() / columns;
  const RmsNormForwardArguments arguments = {
      .out = Rows(out),
      .sum = residual ? Rows(sum) : Rows(),
      .input = Rows(input),
      .residual = residual ? Rows(residual) : Rows(),
      .weight = weight.data,
      .inverse_rms = inverse_rms ? inverse_rms.as<float>() : nullptr,
      .dtype = input.dtype,
      .weight_dtype = weight.dtype,
      .columns = columns,
      .epsilon = epsilon,
  };
  const int64_t tile = std::max<int64_t>(1, kTileElements / columns);
  parallel_for(tile_count(rows, tile), [&](int64_t i) {
    HWY_DYNAMIC_DISPATCH(forward_tile)(arguments, i * tile, std::min(rows, (i + 1) * tile));
  });
}

int64_t rms_norm_backward_tile_rows(int64_t rows) {
  return std::max<int64_t>(32, tile_count(rows, 64));
}

void rms_norm_backward_cpu(const TensorView& dinput, const TensorView& dweight,
                           const ConstTensorView& dout, const ConstTensorView& dresidual,
                           const ConstTensorView& input, const ConstTensorView& inverse_rms,
                           const ConstTensorView& weight, float* workspace) {
  const int64_t columns = input.dim(-1);
  const int64_t rows = input.size() / columns;
  const RmsNormBackwardArguments arguments = {
      .dinput = Rows(dinput),
      .dout = Rows(dout),
      .dresidual = dresidual ? Rows(dresidual) : Rows(),
      .input = Rows(input),
      .weight = weight.data,
      .inverse_rms = inverse_rms.as<float>(),
      .dtype = input.dtype,
      .weight_dtype = weight.dtype,
      .columns = columns,
  };
  const int64_t tile = rms_norm_backward_tile_rows(rows);
  const int64_t tiles = tile_count(rows, tile);
  parallel_for(tiles, [&](int64_t i) {
    float* partial = nullptr;
    if (dweight) {
      partial = workspace + i * columns;
      std::fill_n(partial, columns, 0.0f);
    }
    HWY_DYNAMIC_DISPATCH(backward_tile)
    (arguments, partial, i * tile, std::min(rows, (i + 1) * tile));
  });
  if (!dweight) {
    return;
  }
  float* total = dweight.as<float>();
  parallel_for(tile_count(columns, kColumnTile), [&](int64_t c) {
    const int64_t last = std::min(columns, (c + 1) * kColumnTile);
    for (int64_t i = 0; i < tiles; ++i) {
      for (int64_t column = c * kColumnTile; column < last; ++column) {
        total[column] += workspace[i * columns + column];
      }
    }
  });
}

}  // namespace detail
}  // namespace flashloom
#endif  // HWY_ONCE
