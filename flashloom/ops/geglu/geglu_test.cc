#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/tensor_for_test.h"
#include "flashloom/ops/geglu/geglu_reference.h"

namespace flashloom {
namespace {

// Phi within 20 roundings of itself where it is not small, then a few more; half an ulp of bf16
// storage.
double bound(DType dtype) {
  return 32 * 0x1p-24 + (dtype == DType::bf16 ? 0x1p-8 : 0);
}

using Form = std::tuple<DType, GeluApproximation>;

class GegluForm : public testing::TestWithParam<Form> {
 protected:
  DType dtype() const { return std::get<0>(GetParam()); }

  GegluOptions options() const { return {.approximation = std::get<1>(GetParam())}; }
};

TEST_P(GegluForm, EqualsTheReference) {
  const DType dtype = this->dtype();
  for (const int64_t columns : {1, 5, 8, 63, 1536, 40000}) {
    const int64_t rows = columns > 1000 ? 3 : 29;
    const OwnedTensor gate = normal_tensor(dtype, {rows, columns}, 1, 4, 0, 3);
    const OwnedTensor up = normal_tensor(dtype, {rows, columns}, 2, 1, 0, 1);
    const OwnedTensor dout = normal_tensor(dtype, {rows, columns}, 3, 1, 0, 2);
    const OwnedTensor out(dtype, {rows, columns}, 4);
    const OwnedTensor exact(DType::f64, {rows, columns});
    geglu_forward(out, gate, up, options());
    geglu_forward_reference(exact, gate, up, options());
    EXPECT_LE(max_error(out, exact), bound(dtype)) << columns;

    const OwnedTensor dgate(dtype, {rows, columns}, 1);
    const OwnedTensor dup(dtype, {rows, columns}, 5);
    const OwnedTensor again(dtype, {rows, columns}, 4);
    const OwnedTensor exact_dgate(DType::f64, {rows, columns});
    const OwnedTensor exact_dup(DType::f64, {rows, columns});
    geglu_backward(dgate, dup, again, dout, gate, up, options());
    geglu_backward_reference(exact_dgate, exact_dup, {}, dout, gate, up, options());
    EXPECT_LE(max_error(dgate, exact_dgate), bound(dtype)) << columns;
    EXPECT_LE(max_error(dup, exact_dup), bound(dtype)) << columns;
    EXPECT_TRUE(same_bits(again, out)) << columns;
  }
}

TEST_P(GegluForm, KeepsRelativePrecisionInTheTails) {
  const DType dtype = this->dtype();
  constexpr int64_t kColumns = 97;
  OwnedTensor gate(dtype, {1, kColumns});
  for (int64_t i = 0; i < kColumns; ++i) {
    gate.set({0, i}, static_cast<double>(i - 48) / 4);
  }
  OwnedTensor ones(dtype, {1, kColumns});
  ones.fill(1);
  const OwnedTensor dgate(dtype, {1, kColumns});
  const OwnedTensor dup(dtype, {1, kColumns});
  const OwnedTensor exact_dgate(DType::f64, {1, kColumns});
  const OwnedTensor exact_dup(DType::f64, {1, kColumns});
  geglu_backward(dgate, dup, {}, ones, gate, ones, options());
  geglu_backward_reference(exact_dgate, exact_dup, {}, ones, gate, ones, options());
  for (int64_t i = 0; i < kColumns; ++i) {
    const double g = gate.at({0, i});
    const double dg = exact_dgate.at({0, i});
    const double du = exact_dup.at({0, i});
    // A rounding of the exponent is a relative error of the result.
    const double exponent = options().approximation == GeluApproximation::none
                                ? g * g / 2
                                : 1.6 * std::fabs(g) * (1 + 0.045 * g * g);
    const double relative = (32 + 4 * exponent) * 0x1p-24 + (dtype == DType::bf16 ? 0x1p-8 : 0);
    const double cumulative = g == 0 ? 0.5 : du / g;  // the slope is a sum of it and the rest
    const double terms = cumulative + std::fabs(dg - cumulative);
    constexpr double kSmallest = 1e-36;  // exp_f32 is exact down to normal numbers
    EXPECT_NEAR(dgate.at({0, i}), dg, terms * relative + kSmallest) << g;
    EXPECT_NEAR(dup.at({0, i}), du, std::fabs(du) * relative + kSmallest) << g;
  }
}

TEST_P(GegluForm, HugeGatesPassOrStop) {
  const OwnedTensor gate(dtype(), {1, 2});
  store_element(gate.view(), {0, 0}, 0x1p80);  // its square overflows
  store_element(gate.view(), {0, 1}, -0x1p80);
  OwnedTensor ones(dtype(), {1, 2});
  ones.fill(1);
  const OwnedTensor dgate(dtype(), {1, 2});
  const OwnedTensor out(dtype(), {1, 2});
  geglu_forward(out, gate, ones, options());
  geglu_backward(dgate, out, {}, ones, gate, ones, options());
  EXPECT_EQ(out.at({0, 0}), 0x1p80);
  EXPECT_EQ(out.at({0, 1}), 0);
  EXPECT_EQ(dgate.at({0, 0}), 1);
  EXPECT_EQ(dgate.at({0, 1}), 0);
}

TEST_P(GegluForm, AllowsTheAliasesOfTheContract) {
  const DType dtype = this->dtype();
  const OwnedTensor gate = normal_tensor(dtype, {7, 101}, 1, 2);
  const OwnedTensor up = normal_tensor(dtype, {7, 101}, 2);
  const OwnedTensor dout = normal_tensor(dtype, {7, 101}, 3);
  const OwnedTensor out(dtype, {7, 101});
  const OwnedTensor dgate(dtype, {7, 101});
  const OwnedTensor dup(dtype, {7, 101});
  geglu_forward(out, gate, up, options());
  geglu_backward(dgate, dup, {}, dout, gate, up, options());

  const OwnedTensor over_gate = gate;
  geglu_forward(over_gate, over_gate, up, options());
  EXPECT_TRUE(same_bits(over_gate, out));
  const OwnedTensor over_up = up;
  geglu_forward(over_up, gate, over_up, options());
  EXPECT_TRUE(same_bits(over_up, out));

  const OwnedTensor g = gate;
  const OwnedTensor u = up;
  const OwnedTensor d = dout;
  geglu_backward(g, u, d, d, g, u, options());
  EXPECT_TRUE(same_bits(g, dgate));
  EXPECT_TRUE(same_bits(u, dup));
  EXPECT_TRUE(same_bits(d, out));
}

TEST_P(GegluForm, GivesTheSameBitsForAnyNumberOfThreads) {
  const DType dtype = this->dtype();
  const OwnedTensor gate = normal_tensor(dtype, {200, 300}, 1, 2);
  const OwnedTensor up = normal_tensor(dtype, {200, 300}, 2);
  const OwnedTensor dout = normal_tensor(dtype, {200, 300}, 3);
  std::vector<OwnedTensor> results[2];
  for (int run = 0; run < 2; ++run) {
    set_thread_count(run == 0 ? 1 : 5);
    results[run].assign(3, OwnedTensor(dtype, {200, 300}));
    geglu_forward(results[run][0], gate, up, options());
    geglu_backward(results[run][1], results[run][2], {}, dout, gate, up, options());
  }
  set_thread_count(0);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(same_bits(results[0][i], results[1][i])) << i;
  }
}

TEST_P(GegluForm, PassesNaN) {
  OwnedTensor gate(dtype(), {1, 20});
  OwnedTensor up(dtype(), {1, 20});
  gate.fill(1);
  up.fill(1);
  gate.set({0, 3}, std::nan(""));  // in a vector
  up.set({0, 19}, std::nan(""));   // in the tail
  const OwnedTensor out(dtype(), {1, 20});
  geglu_forward(out, gate, up, options());
  for (int64_t i = 0; i < 20; ++i) {
    EXPECT_EQ(std::isnan(out.at({0, i})), i == 3 || i == 19) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(, GegluForm,
                         testing::Combine(testing::Values(DType::f32, DType::bf16),
                                          testing::Values(GeluApproximation::none,
                                                          GeluApproximation::tanh)));

TEST(Geglu, TheReferenceGivesTheNumbersOfPyTorch) {
  // torch.nn.functional.gelu(torch.tensor([1, -2, 0.5], dtype=torch.float64), approximate=...)
  const std::vector<std::pair<GeluApproximation, std::vector<double>>> expected = {
      {GeluApproximation::none, {0.841344746068543, -0.04550026389635842, 0.3457312306370066}},
      {GeluApproximation::tanh, {0.8411919906082768, -0.04540230591222494, 0.3457140098251439}}};
  OwnedTensor gate(DType::f64, {1, 3});
  OwnedTensor up(DType::f64, {1, 3});
  const OwnedTensor out(DType::f64, {1, 3});
  gate.set({0, 0}, 1);
  gate.set({0, 1}, -2);
  gate.set({0, 2}, 0.5);
  up.fill(1);
  for (const auto& [approximation, values] : expected) {
    geglu_forward_reference(out, gate, up, {.approximation = approximation});
    for (int64_t i = 0; i < 3; ++i) {
      EXPECT_NEAR(out.at({0, i}), values[static_cast<size_t>(i)], 1e-15);
    }
  }
}

TEST(Geglu, ReferenceGradientsEqualFiniteDifferences) {
  const OwnedTensor gate = normal_tensor(DType::f64, {4, 5}, 1, 3);
  const OwnedTensor up = normal_tensor(DType::f64, {4, 5}, 2);
  const OwnedTensor dout = normal_tensor(DType::f64, {4, 5}, 3);
  const OwnedTensor out(DType::f64, {4, 5});
  const OwnedTensor dgate(DType::f64, {4, 5});
  const OwnedTensor dup(DType::f64, {4, 5});
  for (const auto approximation : {GeluApproximation::none, GeluApproximation::tanh}) {
    const GegluOptions options = {.approximation = approximation};
    geglu_backward_reference(dgate, dup, {}, dout, gate, up, options);
    const auto value = [&] {
      geglu_forward_reference(out, gate, up, options);
      return dot(out, dout);
    };
    for_each_index(gate.view(), [&](auto index) {
      EXPECT_NEAR(load_element(dgate, index), finite_difference(gate, index, value), 1e-8);
      EXPECT_NEAR(load_element(dup, index), finite_difference(up, index, value), 1e-8);
    });
  }
}

TEST(Geglu, RejectsBadArguments) {
  const OwnedTensor x(DType::f32, {4, 8});
  const OwnedTensor y(DType::f32, {4, 8});
  const OwnedTensor z(DType::f32, {4, 8});
  const OwnedTensor shorter(DType::f32, {4, 7});
  const OwnedTensor half(DType::bf16, {4, 8});
  const OwnedTensor flat(DType::f32, {32});
  const OwnedTensor upright(DType::f32, {8, 4});
  const TensorView apart = upright.view().transpose(0, 1);
  EXPECT_THROW(geglu_forward(x, shorter, y), InvalidArgument);
  EXPECT_THROW(geglu_forward(x, y, shorter), InvalidArgument);
  EXPECT_THROW(geglu_forward(shorter, x, y), InvalidArgument);
  EXPECT_THROW(geglu_forward(half, x, y), InvalidArgument);
  EXPECT_THROW(geglu_forward(x, half, y), InvalidArgument);
  EXPECT_THROW(geglu_forward(flat, flat, flat), InvalidArgument);
  EXPECT_THROW(geglu_forward(apart, x, y), InvalidArgument);
  EXPECT_THROW(geglu_forward({}, x, y), InvalidArgument);
  EXPECT_THROW(geglu_forward(x, y, z, {.approximation = static_cast<GeluApproximation>(7)}),
               InvalidArgument);
  EXPECT_THROW(geglu_backward(x, x, {}, y, y, y), InvalidArgument);
  EXPECT_THROW(geglu_backward(x, y, x, z, z, z), InvalidArgument);
  EXPECT_THROW(geglu_backward(x, y, {}, shorter, z, z), InvalidArgument);
  EXPECT_THROW(geglu_backward(x, {}, {}, z, z, z), InvalidArgument);
}

}  // namespace
}  // namespace flashloom
