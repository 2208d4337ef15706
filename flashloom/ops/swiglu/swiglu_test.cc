#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/tensor_for_test.h"
#include "flashloom/ops/swiglu/swiglu_reference.h"

namespace flashloom {
namespace {

// exp 2 ulp, then at most eight roundings in f32; half an ulp of bf16 storage.
double bound(DType dtype) {
  return 12 * 0x1p-24 + (dtype == DType::bf16 ? 0x1p-8 : 0);
}

class SwigluDType : public testing::TestWithParam<DType> {};

TEST_P(SwigluDType, EqualsTheReference) {
  const DType dtype = GetParam();
  for (const int64_t columns : {1, 5, 8, 63, 1536, 40000}) {
    const int64_t rows = columns > 1000 ? 3 : 29;
    const OwnedTensor gate = normal_tensor(dtype, {rows, columns}, 1, 4, 0, 3);
    const OwnedTensor up = normal_tensor(dtype, {rows, columns}, 2, 1, 0, 1);
    const OwnedTensor dout = normal_tensor(dtype, {rows, columns}, 3, 1, 0, 2);
    const OwnedTensor out(dtype, {rows, columns}, 4);
    const OwnedTensor exact(DType::f64, {rows, columns});
    swiglu_forward(out, gate, up);
    swiglu_forward_reference(exact, gate, up);
    EXPECT_LE(max_error(out, exact), bound(dtype)) << columns;

    const OwnedTensor dgate(dtype, {rows, columns}, 1);
    const OwnedTensor dup(dtype, {rows, columns}, 5);
    const OwnedTensor again(dtype, {rows, columns}, 4);
    const OwnedTensor exact_dgate(DType::f64, {rows, columns});
    const OwnedTensor exact_dup(DType::f64, {rows, columns});
    swiglu_backward(dgate, dup, again, dout, gate, up);
    swiglu_backward_reference(exact_dgate, exact_dup, {}, dout, gate, up);
    EXPECT_LE(max_error(dgate, exact_dgate), bound(dtype)) << columns;
    EXPECT_LE(max_error(dup, exact_dup), bound(dtype)) << columns;
    EXPECT_TRUE(same_bits(again, out)) << columns;
  }
}

TEST_P(SwigluDType, KeepsRelativePrecisionForLargeGates) {
  const DType dtype = GetParam();
  const int64_t columns = 160;
  OwnedTensor gate(dtype, {1, columns});
  for (int64_t i = 0; i < columns; ++i) {
    gate.set({0, i}, static_cast<double>(i) - 80);
  }
  OwnedTensor ones(dtype, {1, columns});
  ones.fill(1);
  const OwnedTensor dgate(dtype, {1, columns});
  const OwnedTensor dup(dtype, {1, columns});
  const OwnedTensor exact_dgate(DType::f64, {1, columns});
  const OwnedTensor exact_dup(DType::f64, {1, columns});
  swiglu_backward(dgate, dup, {}, ones, gate, ones);
  swiglu_backward_reference(exact_dgate, exact_dup, {}, ones, gate, ones);
  for (int64_t i = 0; i < columns; ++i) {
    const double dg = exact_dgate.at({0, i});
    const double du = exact_dup.at({0, i});
    // s (1 + g (1 - s)): for g = -80 the two terms are 1 : -80, so little is lost.
    EXPECT_NEAR(dgate.at({0, i}), dg, std::fabs(dg) * 2 * bound(dtype)) << gate.at({0, i});
    EXPECT_NEAR(dup.at({0, i}), du, std::fabs(du) * 2 * bound(dtype)) << gate.at({0, i});
  }
}

TEST_P(SwigluDType, AllowsTheAliasesOfTheContract) {
  const DType dtype = GetParam();
  const OwnedTensor gate = normal_tensor(dtype, {7, 101}, 1, 2);
  const OwnedTensor up = normal_tensor(dtype, {7, 101}, 2);
  const OwnedTensor dout = normal_tensor(dtype, {7, 101}, 3);
  const OwnedTensor out(dtype, {7, 101});
  const OwnedTensor dgate(dtype, {7, 101});
  const OwnedTensor dup(dtype, {7, 101});
  swiglu_forward(out, gate, up);
  swiglu_backward(dgate, dup, {}, dout, gate, up);

  const OwnedTensor over_gate = gate;
  swiglu_forward(over_gate, over_gate, up);
  EXPECT_TRUE(same_bits(over_gate, out));
  const OwnedTensor over_up = up;
  swiglu_forward(over_up, gate, over_up);
  EXPECT_TRUE(same_bits(over_up, out));

  const OwnedTensor g = gate;
  const OwnedTensor u = up;
  const OwnedTensor d = dout;
  swiglu_backward(g, u, d, d, g, u);
  EXPECT_TRUE(same_bits(g, dgate));
  EXPECT_TRUE(same_bits(u, dup));
  EXPECT_TRUE(same_bits(d, out));
}

TEST_P(SwigluDType, GivesTheSameBitsForAnyNumberOfThreads) {
  const DType dtype = GetParam();
  const OwnedTensor gate = normal_tensor(dtype, {200, 300}, 1, 2);
  const OwnedTensor up = normal_tensor(dtype, {200, 300}, 2);
  const OwnedTensor dout = normal_tensor(dtype, {200, 300}, 3);
  std::vector<OwnedTensor> results[2];
  for (int run = 0; run < 2; ++run) {
    set_thread_count(run == 0 ? 1 : 5);
    results[run].assign(3, OwnedTensor(dtype, {200, 300}));
    swiglu_forward(results[run][0], gate, up);
    swiglu_backward(results[run][1], results[run][2], {}, dout, gate, up);
  }
  set_thread_count(0);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_TRUE(same_bits(results[0][i], results[1][i])) << i;
  }
}

TEST_P(SwigluDType, PassesNaN) {
  OwnedTensor gate(GetParam(), {1, 20});
  OwnedTensor up(GetParam(), {1, 20});
  gate.fill(1);
  up.fill(1);
  gate.set({0, 3}, std::nan(""));  // in a vector
  up.set({0, 19}, std::nan(""));   // in the tail
  const OwnedTensor out(GetParam(), {1, 20});
  swiglu_forward(out, gate, up);
  for (int64_t i = 0; i < 20; ++i) {
    EXPECT_EQ(std::isnan(out.at({0, i})), i == 3 || i == 19) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(, SwigluDType, testing::Values(DType::f32, DType::bf16));

TEST(Swiglu, ReferenceGradientsEqualFiniteDifferences) {
  const OwnedTensor gate = normal_tensor(DType::f64, {4, 5}, 1, 3);
  const OwnedTensor up = normal_tensor(DType::f64, {4, 5}, 2);
  const OwnedTensor dout = normal_tensor(DType::f64, {4, 5}, 3);
  const OwnedTensor out(DType::f64, {4, 5});
  const OwnedTensor dgate(DType::f64, {4, 5});
  const OwnedTensor dup(DType::f64, {4, 5});
  swiglu_backward_reference(dgate, dup, {}, dout, gate, up);
  const auto value = [&] {
    swiglu_forward_reference(out, gate, up);
    return dot(out, dout);
  };
  for_each_index(gate.view(), [&](auto index) {
    EXPECT_NEAR(load_element(dgate, index), finite_difference(gate, index, value), 1e-8);
    EXPECT_NEAR(load_element(dup, index), finite_difference(up, index, value), 1e-8);
  });
}

TEST(Swiglu, RejectsBadArguments) {
  const OwnedTensor x(DType::f32, {4, 8});
  const OwnedTensor y(DType::f32, {4, 8});
  const OwnedTensor z(DType::f32, {4, 8});
  const OwnedTensor shorter(DType::f32, {4, 7});
  const OwnedTensor half(DType::bf16, {4, 8});
  const OwnedTensor flat(DType::f32, {32});
  const OwnedTensor upright(DType::f32, {8, 4});
  const TensorView apart = upright.view().transpose(0, 1);
  EXPECT_THROW(swiglu_forward(x, shorter, y), InvalidArgument);
  EXPECT_THROW(swiglu_forward(x, y, shorter), InvalidArgument);
  EXPECT_THROW(swiglu_forward(shorter, x, y), InvalidArgument);
  EXPECT_THROW(swiglu_forward(half, x, y), InvalidArgument);
  EXPECT_THROW(swiglu_forward(x, half, y), InvalidArgument);
  EXPECT_THROW(swiglu_forward(flat, flat, flat), InvalidArgument);
  EXPECT_THROW(swiglu_forward(apart, x, y), InvalidArgument);
  EXPECT_THROW(swiglu_forward({}, x, y), InvalidArgument);
  EXPECT_THROW(swiglu_backward(x, x, {}, y, y, y), InvalidArgument);
  EXPECT_THROW(swiglu_backward(x, y, x, z, z, z), InvalidArgument);
  EXPECT_THROW(swiglu_backward(x, y, {}, shorter, z, z), InvalidArgument);
  EXPECT_THROW(swiglu_backward(x, {}, {}, z, z, z), InvalidArgument);
}

}  // namespace
}  // namespace flashloom
