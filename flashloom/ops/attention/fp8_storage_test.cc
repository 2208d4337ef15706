#include "flashloom/ops/attention/fp8_storage.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <utility>

#include "flashloom/core/error.h"
#include "flashloom/ops/attention/attention_test_case.h"

// 8-bit storage: the format against its definition, and what scales mean.

namespace flashloom {
namespace {

using attention_test::distance;
using attention_test::forward;
using attention_test::Tensor;
using attention_test::with_backend;

TEST(Fp8Storage, EveryValueSurvivesTheRoundTrip) {
  for (int bits = 0; bits < 256; ++bits) {
    const float value = e4m3_to_float(static_cast<uint8_t>(bits));
    if ((bits & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(value));
      EXPECT_TRUE(std::isnan(e4m3_to_float(e4m3_from_float(value))));
    } else {
      EXPECT_EQ(e4m3_from_float(value), bits) << value;
    }
  }
  EXPECT_EQ(e4m3_to_float(0x7e), 448);
  EXPECT_EQ(e4m3_to_float(0x01), 0x1p-9F);
  EXPECT_EQ(e4m3_to_float(0x08), 0x1p-6F);
}

// Between two neighbours the nearer one, in the middle the one whose last bit is 0.
TEST(Fp8Storage, RoundsToTheNearestEven) {
  for (int bits = 0; bits < 0x7e; ++bits) {
    const float low = e4m3_to_float(static_cast<uint8_t>(bits));
    const float high = e4m3_to_float(static_cast<uint8_t>(bits + 1));
    const float middle = (low + high) / 2;
    EXPECT_EQ(e4m3_from_float(std::nextafter(middle, 0.0F)), bits) << middle;
    EXPECT_EQ(e4m3_from_float(std::nextafter(middle, 1000.0F)), bits + 1) << middle;
    EXPECT_EQ(e4m3_from_float(middle), bits % 2 == 0 ? bits : bits + 1) << middle;
    EXPECT_EQ(e4m3_from_float(-middle), 0x80 | (bits % 2 == 0 ? bits : bits + 1)) << middle;
  }
  EXPECT_EQ(e4m3_from_float(1e6F), 0x7e);
  EXPECT_EQ(e4m3_from_float(std::numeric_limits<float>::infinity()), 0x7e);
}

// Attention of stored values with scales is attention of the values; out comes scaled, and amax_out
// is its largest magnitude before that.
TEST(Fp8Storage, ScalesAreThoseOfTheContract) {
  const Tensor q = std::move(Tensor(DType::e4m3, {2, 4, 30, 16}).random(1, 4));
  const Tensor k = std::move(Tensor(DType::e4m3, {2, 2, 40, 16}).random(2, 4));
  const Tensor v = std::move(Tensor(DType::e4m3, {2, 2, 40, 16}).random(3, 4));
  Tensor q_scale(DType::f32, {2, 4});
  Tensor k_scale(DType::f32, {1, 2});
  Tensor v_scale(DType::f32, {2, 1});
  Tensor out_scale(DType::f32, {1});
  const auto fill = [](Tensor& tensor, double first) {
    for (int64_t i = 0; i < tensor.size(); ++i) {
      tensor.set(i, first * (1 + 0.2 * static_cast<double>(i)));
    }
  };
  fill(q_scale, 0.2);
  fill(k_scale, 0.3);
  fill(v_scale, 0.5);
  fill(out_scale, 0.25);
  const auto scaled = [](const Tensor& stored, const Tensor& scale, bool by_sequence,
                         bool by_head) {
    const int64_t heads = stored.view().dim(1);
    Tensor values(DType::f64, {2, heads, stored.view().dim(2), 16});
    const int64_t each = stored.size() / 2 / heads;
    for (int64_t i = 0; i < stored.size(); ++i) {
      const int64_t b = i / each / heads;
      const int64_t h = i / each % heads;
      const int64_t at = by_sequence ? (by_head ? b * heads + h : b) : h;
      values.set(i, stored.get(i) * scale.get(at));
    }
    return values;
  };
  Tensor exact(DType::f64, {2, 4, 30, 16});
  forward({.out = exact},
          {scaled(q, q_scale, true, true), scaled(k, k_scale, false, true),
           scaled(v, v_scale, true, false)},
          with_backend({}, AttentionBackend::reference));
  Tensor ours(DType::f64, {2, 4, 30, 16});
  const Tensor amax(DType::f32, {1});
  AttentionOptions options = with_backend({}, AttentionBackend::reference);
  options.fp8 = {.q_scale = q_scale,
                 .k_scale = k_scale,
                 .v_scale = v_scale,
                 .out_scale = out_scale,
                 .amax_out = amax};
  forward({.out = ours}, {q, k, v}, options);
  double largest = 0;
  for (int64_t i = 0; i < ours.size(); ++i) {
    ours.set(i, ours.get(i) * 0.25);
    largest = std::max(largest, std::fabs(exact.get(i)));
  }
  EXPECT_LE(distance(ours, exact), 1e-12);
  EXPECT_EQ(amax.get(0), static_cast<float>(largest));
}

TEST(Fp8Storage, ScalesOfOtherShapesAreRefused) {
  const Tensor q = std::move(Tensor(DType::e4m3, {2, 4, 3, 16}).random(1));
  const Tensor out(DType::f32, {2, 4, 3, 16});
  const Tensor wrong(DType::f32, {3, 4});
  const Tensor wide(DType::f64, {1});
  const auto refuse = [&](const AttentionFp8& fp8) {
    AttentionOptions options = with_backend({}, AttentionBackend::reference);
    options.fp8 = fp8;
    EXPECT_THROW(forward({.out = out}, {q, q, q}, options), InvalidArgument);
  };
  refuse({.q_scale = wrong});
  refuse({.out_scale = wide});
  refuse({.amax_out = wide});
}

}  // namespace
}  // namespace flashloom
