#include "flashloom/ops/rope/rope_cpu.h"

#include <algorithm>
#include <array>

#include "flashloom/core/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "flashloom/ops/rope/rope_cpu.cc"
// clang-format off: the order matters
#include "hwy/foreach_target.h"
// clang-format on
#include "flashloom/ops/vector_math/sincos-inl.h"
#include "flashloom/ops/vector_math/storage-inl.h"
#include "hwy/highway.h"

#ifndef FLASHLOOM_OPS_ROPE_ROPE_CPU_ARGUMENTS_
#define FLASHLOOM_OPS_ROPE_ROPE_CPU_ARGUMENTS_

namespace flashloom::detail {

// One of q, k, v: absent, to rotate, or (v) to give its bias only.
struct RopeHeads {
  TensorView x;          // (T, heads, D)
  ConstTensorView bias;  // (heads D)
  bool rotate = true;
};

struct RopeArguments {
  std::array<RopeHeads, 3> heads;
  const int32_t* positions;
  const float* frequencies;
  int64_t half;     // D / 2
  float direction;  // 1 forward, -1 backward
};

// Angles of a token that are at hand at once.
inline constexpr int64_t kAngles = 64;

// Rows and columns of a partial column sum: two levels of sums keep the error near that of T / 64
// additions.
inline constexpr int64_t kSumRows = 64;
inline constexpr int64_t kSumColumns = 64;

}  // namespace flashloom::detail
#endif

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {
namespace {

using detail::kAngles;
using detail::kSumColumns;
using detail::kSumRows;
using detail::RopeArguments;
using detail::RopeHeads;

void sines_and_cosines(float* sine, float* cosine, int32_t position, const float* frequencies,
                       size_t count, float direction) {
  const auto turn = [&](auto d, size_t i) HWY_ATTR {
    const hn::Rebind<float, decltype(d)> df;
    const auto angle =
        hn::Mul(hn::Set(df, static_cast<float>(position)), hn::LoadU(df, frequencies + i));
    const auto both = sincos_f64(d, hn::PromoteTo(d, angle));
    hn::StoreU(hn::Mul(hn::DemoteTo(df, both.sine), hn::Set(df, direction)), df, sine + i);
    hn::StoreU(hn::DemoteTo(df, both.cosine), df, cosine + i);
  };
  const hn::ScalableTag<double> d;
  const hn::CappedTag<double, 1> d1;
  size_t i = 0;
  for (; i + hn::Lanes(d) <= count; i += hn::Lanes(d)) {
    turn(d, i);
  }
  for (; i < count; ++i) {
    turn(d1, i);
  }
}

// One head, `count` angles of it from x and, in the other half, x + half on.
template <class T, class B>
HWY_INLINE void rotate_head(T* x, const B* bias, const float* sine, const float* cosine,
                            size_t half, size_t count) {
  for_vectors(count, [&](auto d, size_t i) HWY_ATTR {
    auto x1 = load_f32(d, x + i);
    auto x2 = load_f32(d, x + half + i);
    if (bias != nullptr) {
      x1 = hn::Add(x1, load_f32(d, bias + i));
      x2 = hn::Add(x2, load_f32(d, bias + half + i));
    }
    const auto c = hn::LoadU(d, cosine + i);
    const auto s = hn::LoadU(d, sine + i);
    store_f32(d, hn::NegMulAdd(x2, s, hn::Mul(x1, c)), x + i);
    store_f32(d, hn::MulAdd(x1, s, hn::Mul(x2, c)), x + half + i);
  });
}

template <class T, class B>
void rotate_heads(const RopeHeads& heads, int64_t token, int64_t first, size_t count, int64_t half,
                  const float* sine, const float* cosine) {
  T* x = heads.x.as<T>() + token * heads.x.strides[0] + first;
  const B* bias = heads.bias ? heads.bias.as<B>() + first : nullptr;
  for (int64_t h = 0; h < heads.x.shape[1]; ++h) {
    rotate_head(x + h * heads.x.strides[1], bias == nullptr ? nullptr : bias + h * 2 * half, sine,
                cosine, static_cast<size_t>(half), count);
  }
}

template <class T, class B>
void add_bias(const RopeHeads& heads, int64_t token) {
  const auto columns = static_cast<size_t>(heads.x.shape[2]);
  for (int64_t h = 0; h < heads.x.shape[1]; ++h) {
    T* x = heads.x.as<T>() + token * heads.x.strides[0] + h * heads.x.strides[1];
    const B* bias = heads.bias.as<B>() + h * heads.x.shape[2];
    for_vectors(columns, [&](auto d, size_t i) HWY_ATTR {
      store_f32(d, hn::Add(load_f32(d, x + i), load_f32(d, bias + i)), x + i);
    });
  }
}

template <class T>
void rotate_token(const RopeArguments& a, int64_t token) {
  float sine[kAngles];
  float cosine[kAngles];
  for (int64_t first = 0; first < a.half; first += kAngles) {
    const auto count = static_cast<size_t>(std::min(kAngles, a.half - first));
    sines_and_cosines(sine, cosine, a.positions[token], a.frequencies + first, count, a.direction);
    for (const RopeHeads& heads : a.heads) {
      if (heads.x && heads.rotate) {
        const bool half_bias = heads.bias && heads.bias.dtype == DType::bf16;
        half_bias ? rotate_heads<T, bf16>(heads, token, first, count, a.half, sine, cosine)
                  : rotate_heads<T, float>(heads, token, first, count, a.half, sine, cosine);
      }
    }
  }
  for (const RopeHeads& heads : a.heads) {
    if (heads.x && !heads.rotate && heads.bias) {
      heads.bias.dtype == DType::bf16 ? add_bias<T, bf16>(heads, token)
                                      : add_bias<T, float>(heads, token);
    }
  }
}

void rotate_tokens(const RopeArguments& a, int64_t first, int64_t last) {
  for (int64_t token = first; token < last; ++token) {
    a.heads[0].x.dtype == DType::f32 ? rotate_token<float>(a, token) : rotate_token<bf16>(a, token);
  }
}

template <class T>
void column_sums_of(float* sum, const T* x, int64_t rows, int64_t stride, size_t columns) {
  for (int64_t first = 0; first < rows; first += kSumRows) {
    float partial[kSumColumns] = {};
    for (int64_t row = first; row < std::min(rows, first + kSumRows); ++row) {
      for_vectors(columns, [&](auto d, size_t i) HWY_ATTR {
        const auto value = load_f32(d, x + row * stride + i);
        hn::StoreU(hn::Add(hn::LoadU(d, partial + i), value), d, partial + i);
      });
    }
    for (size_t i = 0; i < columns; ++i) {
      sum[i] += partial[i];
    }
  }
}

void column_sums(float* sum, const ConstTensorView& x, int64_t head, int64_t first,
                 int64_t columns) {
  const int64_t offset = head * x.strides[1] + first;
  const auto count = static_cast<size_t>(columns);
  if (x.dtype == DType::f32) {
    column_sums_of(sum, x.as<float>() + offset, x.shape[0], x.strides[0], count);
  } else {
    column_sums_of(sum, x.as<bf16>() + offset, x.shape[0], x.strides[0], count);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashloom {

HWY_EXPORT(rotate_tokens);
HWY_EXPORT(column_sums);

namespace detail {
namespace {

// Tokens of a tile: some 10 µs of work for a dozen heads of 64, against 2 µs to hand it out.
constexpr int64_t kTokenTile = 16;

void rotate_all(const RopeArguments& arguments) {
  const int64_t tokens = arguments.heads[0].x.shape[0];
  parallel_for(tile_count(tokens, kTokenTile), [&](int64_t i) {
    HWY_DYNAMIC_DISPATCH(rotate_tokens)
    (arguments, i * kTokenTile, std::min(tokens, (i + 1) * kTokenTile));
  });
}

void add_column_sums(const TensorView& dbias, const ConstTensorView& x) {
  if (!dbias) {
    return;
  }
  const int64_t tiles = tile_count(x.shape[2], kSumColumns);
  parallel_for(x.shape[1] * tiles, [&](int64_t task) {
    const int64_t head = task / tiles;
    const int64_t first = task % tiles * kSumColumns;
    HWY_DYNAMIC_DISPATCH(column_sums)
    (dbias.as<float>() + head * x.shape[2] + first, x, head, first,
     std::min(kSumColumns, x.shape[2] - first));
  });
}

}  // namespace

void rope_forward_cpu(const TensorView& q, const TensorView& k, const TensorView& v,
                      const ConstTensorView& positions, const ConstTensorView& frequencies,
                      const RopeBias& bias) {
  rotate_all({.heads = {{{.x = q, .bias = bias.q},
                         {.x = k, .bias = bias.k},
                         {.x = v, .bias = bias.v, .rotate = false}}},
              .positions = positions.as<int32_t>(),
              .frequencies = frequencies.as<float>(),
              .half = q.shape[2] / 2,
              .direction = 1});
}

void rope_backward_cpu(const TensorView& dq, const TensorView& dk, const ConstTensorView& dv,
                       const ConstTensorView& positions, const ConstTensorView& frequencies,
                       const RopeBiasGradients& dbias) {
  rotate_all({.heads = {{{.x = dq, .bias = {}}, {.x = dk, .bias = {}}, {}}},
              .positions = positions.as<int32_t>(),
              .frequencies = frequencies.as<float>(),
              .half = dq.shape[2] / 2,
              .direction = -1});
  add_column_sums(dbias.q, dq);
  add_column_sums(dbias.k, dk);
  add_column_sums(dbias.v, dv);
}

}  // namespace detail
}  // namespace flashloom
#endif  // HWY_ONCE
