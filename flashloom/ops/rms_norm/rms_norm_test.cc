#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/tensor_for_test.h"
#include "flashloom/ops/rms_norm/rms_norm_reference.h"

namespace flashloom {
namespace {

// Half an ulp of the storage, and for the sum of N squares in f32 over at least 4 partial sums
// half of N / 4 roundings (the square root halves a relative error).
double bound(DType dtype, int64_t columns) {
  const double arithmetic = (static_cast<double>(columns) / 8 + 8) * 0x1p-24;
  return arithmetic + (dtype == DType::bf16 ? 0x1p-8 : 0);
}

struct Case {
  OwnedTensor input, residual, weight, dout, dresidual;

  Case(DType dtype, DType weight_dtype, int64_t rows, int64_t columns, int64_t padding = 0)
      : input(normal_tensor(dtype, {rows, columns}, 1, 2, 0, padding)),
        residual(normal_tensor(dtype, {rows, columns}, 2, 1, 0.5, padding)),
        weight(normal_tensor(weight_dtype, {columns}, 3, 0.3, 1)),
        dout(normal_tensor(dtype, {rows, columns}, 4, 1, 0, padding)),
        dresidual(normal_tensor(dtype, {rows, columns}, 5, 1, 0, padding)) {}
};

class RmsNormDType : public testing::TestWithParam<std::tuple<DType, DType>> {};

TEST_P(RmsNormDType, ForwardEqualsTheReference) {
  const auto [dtype, weight_dtype] = GetParam();
  for (const int64_t columns : {1, 7, 64, 100, 576, 1030}) {
    const int64_t rows = 37;
    const Case c(dtype, weight_dtype, rows, columns, 3);
    const OwnedTensor out(dtype, {rows, columns}, 5);
    const OwnedTensor sum(dtype, {rows, columns}, 2);
    const OwnedTensor inverse_rms(DType::f32, {rows});
    const OwnedTensor exact(DType::f64, {rows, columns});
    const OwnedTensor exact_sum(dtype, {rows, columns});
    const OwnedTensor exact_inverse_rms(DType::f64, {rows});

    rms_norm_forward(out, inverse_rms, {}, c.input, {}, c.weight);
    rms_norm_forward_reference(exact, exact_inverse_rms, {}, c.input, {}, c.weight);
    EXPECT_LE(max_error(out, exact), bound(dtype, columns)) << columns;
    EXPECT_LE(max_error(inverse_rms, exact_inverse_rms), bound(DType::f32, columns));

    rms_norm_forward(out, inverse_rms, sum, c.input, c.residual, c.weight);
    rms_norm_forward_reference(exact, exact_inverse_rms, exact_sum, c.input, c.residual, c.weight);
    EXPECT_EQ(max_error(sum, exact_sum), 0) << columns;
    EXPECT_LE(max_error(out, exact), bound(dtype, columns)) << columns;
    EXPECT_LE(max_error(inverse_rms, exact_inverse_rms), bound(DType::f32, columns));
  }
}

TEST_P(RmsNormDType, BackwardEqualsTheReference) {
  const auto [dtype, weight_dtype] = GetParam();
  for (const int64_t columns : {1, 7, 64, 100, 576, 1030}) {
    const int64_t rows = 70;  // three tiles of dweight
    const Case c(dtype, weight_dtype, rows, columns, 3);
    const OwnedTensor out(dtype, {rows, columns});
    const OwnedTensor inverse_rms(DType::f32, {rows});
    rms_norm_forward(out, inverse_rms, {}, c.input, {}, c.weight);
    std::vector<std::byte> workspace(
        static_cast<size_t>(rms_norm_backward_workspace_bytes(rows, columns)), std::byte{0xff});
    for (const bool with_residual : {false, true}) {
      const ConstTensorView dresidual = with_residual ? c.dresidual.view() : ConstTensorView();
      const OwnedTensor dinput(dtype, {rows, columns}, 1);
      const OwnedTensor dweight = normal_tensor(DType::f32, {columns}, 6);
      const OwnedTensor exact(DType::f64, {rows, columns});
      const OwnedTensor exact_dweight = to_dtype(dweight, DType::f64);
      rms_norm_backward(dinput, dweight, c.dout, dresidual, c.input, inverse_rms, c.weight,
                        workspace);
      rms_norm_backward_reference(exact, exact_dweight, c.dout, dresidual, c.input, inverse_rms,
                                  c.weight);
      // dx = r (a few units - a few units): an error of the parts is that of the forward pass,
      // times r, which a single column can make large.
      double largest_r = 1;
      for (int64_t row = 0; row < rows; ++row) {
        largest_r = std::max(largest_r, inverse_rms.at({row}));
      }
      EXPECT_LE(max_error(dinput, exact), 4 * bound(dtype, columns) * largest_r) << columns;
      // 70 terms of order 1, each rounded twice, added one after another.
      EXPECT_LE(max_error(dweight, exact_dweight), 70 * 4 * 0x1p-24) << columns;
    }
  }
}

TEST_P(RmsNormDType, AllowsTheAliasesOfTheContract) {
  const auto [dtype, weight_dtype] = GetParam();
  const int64_t rows = 9;
  const int64_t columns = 77;
  const Case c(dtype, weight_dtype, rows, columns);
  const OwnedTensor out(dtype, {rows, columns});
  const OwnedTensor sum(dtype, {rows, columns});
  const OwnedTensor inverse_rms(DType::f32, {rows});
  rms_norm_forward(out, inverse_rms, sum, c.input, c.residual, c.weight);

  const OwnedTensor stream = c.residual;  // the residual stream in place, the norm over the input
  const OwnedTensor normed = c.input;
  rms_norm_forward(normed, {}, stream, normed, stream, c.weight);
  EXPECT_TRUE(same_bits(normed, out));
  EXPECT_TRUE(same_bits(stream, sum));
  const OwnedTensor in_place = c.input;
  rms_norm_forward(out, {}, sum, c.input, c.residual, c.weight);
  rms_norm_forward(in_place, {}, {}, in_place, {}, c.weight);
  rms_norm_forward(out, inverse_rms, {}, c.input, {}, c.weight);
  EXPECT_TRUE(same_bits(in_place, out));

  const OwnedTensor dinput(dtype, {rows, columns});
  rms_norm_backward(dinput, {}, c.dout, c.dresidual, c.input, inverse_rms, c.weight, {});
  const OwnedTensor over_residual = c.dresidual;
  rms_norm_backward(over_residual, {}, c.dout, over_residual, c.input, inverse_rms, c.weight, {});
  EXPECT_TRUE(same_bits(over_residual, dinput));
  const OwnedTensor over_dout = c.dout;
  rms_norm_backward(over_dout, {}, over_dout, c.dresidual, c.input, inverse_rms, c.weight, {});
  EXPECT_TRUE(same_bits(over_dout, dinput));
}

TEST_P(RmsNormDType, GivesTheSameBitsForAnyNumberOfThreads) {
  const auto [dtype, weight_dtype] = GetParam();
  const int64_t rows = 300;
  const int64_t columns = 577;
  const Case c(dtype, weight_dtype, rows, columns);
  std::vector<std::byte> workspace(
      static_cast<size_t>(rms_norm_backward_workspace_bytes(rows, columns)));
  std::vector<OwnedTensor> results[2];
  for (int run = 0; run < 2; ++run) {
    set_thread_count(run == 0 ? 1 : 5);
    const OwnedTensor out(dtype, {rows, columns});
    const OwnedTensor sum(dtype, {rows, columns});
    const OwnedTensor inverse_rms(DType::f32, {rows});
    const OwnedTensor dinput(dtype, {rows, columns});
    const OwnedTensor dweight(DType::f32, {columns});
    rms_norm_forward(out, inverse_rms, sum, c.input, c.residual, c.weight);
    rms_norm_backward(dinput, dweight, c.dout, {}, sum, inverse_rms, c.weight, workspace);
    results[run] = {out, sum, inverse_rms, dinput, dweight};
  }
  set_thread_count(0);
  for (size_t i = 0; i < results[0].size(); ++i) {
    EXPECT_TRUE(same_bits(results[0][i], results[1][i])) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(, RmsNormDType,
                         testing::Values(std::tuple(DType::f32, DType::f32),
                                         std::tuple(DType::bf16, DType::bf16),
                                         std::tuple(DType::bf16, DType::f32),
                                         std::tuple(DType::f32, DType::bf16)));

TEST(RmsNorm, ReferenceGradientsEqualFiniteDifferences) {
  const int64_t rows = 3;
  const int64_t columns = 5;
  const OwnedTensor input = normal_tensor(DType::f64, {rows, columns}, 1);
  const OwnedTensor residual = normal_tensor(DType::f64, {rows, columns}, 2);
  const OwnedTensor weight = normal_tensor(DType::f64, {columns}, 3);
  const OwnedTensor dout = normal_tensor(DType::f64, {rows, columns}, 4);
  const OwnedTensor dsum = normal_tensor(DType::f64, {rows, columns}, 5);
  const OwnedTensor out(DType::f64, {rows, columns});
  const OwnedTensor sum(DType::f64, {rows, columns});
  const OwnedTensor inverse_rms(DType::f64, {rows});
  const RmsNormOptions options = {.epsilon = 0.1};  // large enough that its part shows
  const auto value = [&] {
    rms_norm_forward_reference(out, inverse_rms, sum, input, residual, weight, options);
    return dot(out, dout) + dot(sum, dsum);
  };
  value();
  const OwnedTensor dinput(DType::f64, {rows, columns});
  const OwnedTensor dweight(DType::f64, {columns});
  rms_norm_backward_reference(dinput, dweight, dout, dsum, sum, inverse_rms, weight);
  for_each_index(input.view(), [&](auto index) {
    EXPECT_NEAR(load_element(dinput, index), finite_difference(input, index, value), 1e-8);
    EXPECT_NEAR(load_element(dinput, index), finite_difference(residual, index, value), 1e-8);
  });
  for_each_index(weight.view(), [&](auto index) {
    EXPECT_NEAR(load_element(dweight, index), finite_difference(weight, index, value), 1e-8);
  });
}

TEST(RmsNorm, NormalisesHeadsThatLieInAWiderBuffer) {
  const int64_t tokens = 5;
  const int64_t heads = 3;
  const int64_t columns = 24;
  const OwnedTensor buffer = normal_tensor(DType::f32, {tokens, heads + 4, columns}, 1);
  const TensorView q = buffer.view().slice(1, 2, heads);
  const OwnedTensor weight = normal_tensor(DType::f32, {columns}, 2);
  const OwnedTensor out(DType::f32, {tokens, heads, columns});
  const OwnedTensor inverse_rms(DType::f32, {tokens, heads});
  const OwnedTensor exact(DType::f64, {tokens, heads, columns});
  const OwnedTensor exact_inverse_rms(DType::f64, {tokens, heads});
  rms_norm_forward(out, inverse_rms, {}, q, {}, weight);
  rms_norm_forward_reference(exact, exact_inverse_rms, {}, q, {}, weight);
  EXPECT_LE(max_error(out, exact), bound(DType::f32, columns));

  const OwnedTensor dout = normal_tensor(DType::f32, {tokens, heads, columns}, 3);
  const OwnedTensor dinput(DType::f32, {tokens, heads, columns});
  const OwnedTensor exact_dinput(DType::f64, {tokens, heads, columns});
  rms_norm_backward(dinput, {}, dout, {}, q, inverse_rms, weight, {});
  rms_norm_backward_reference(exact_dinput, {}, dout, {}, q, inverse_rms, weight);
  EXPECT_LE(max_error(dinput, exact_dinput), 4 * bound(DType::f32, columns));
}

TEST(RmsNorm, GradientIsOrthogonalToItsInput) {
  // y does not change with the length of x (epsilon 0), so dx has no part along x.
  const int64_t columns = 200;
  const OwnedTensor input = normal_tensor(DType::f32, {1, columns}, 1);
  const OwnedTensor weight = normal_tensor(DType::f32, {columns}, 2);
  const OwnedTensor dout = normal_tensor(DType::f32, {1, columns}, 3);
  const OwnedTensor out(DType::f32, {1, columns});
  const OwnedTensor inverse_rms(DType::f32, {1});
  const OwnedTensor dinput(DType::f32, {1, columns});
  rms_norm_forward(out, inverse_rms, {}, input, {}, weight, {.epsilon = 0});
  rms_norm_backward(dinput, {}, dout, {}, input, inverse_rms, weight, {});
  const double lengths = std::sqrt(dot(dinput, dinput) * dot(input, input));
  EXPECT_GT(lengths, 1);
  EXPECT_LE(std::fabs(dot(dinput, input)) / lengths, bound(DType::f32, columns));
}

TEST(RmsNorm, AcceptsNoRows) {
  const OwnedTensor none(DType::f32, {0, 8});
  const OwnedTensor weight(DType::f32, {8});
  EXPECT_NO_THROW(rms_norm_forward(none, {}, {}, none, {}, weight));
}

TEST(RmsNorm, RejectsBadArguments) {
  const OwnedTensor x(DType::f32, {4, 8});
  const OwnedTensor other_shape(DType::f32, {4, 7});
  const OwnedTensor other_dtype(DType::bf16, {4, 8});
  const OwnedTensor half(DType::f16, {4, 8});
  const OwnedTensor out(DType::f32, {4, 8});
  const OwnedTensor weight(DType::f32, {8});
  const OwnedTensor short_weight(DType::f32, {7});
  const OwnedTensor inverse_rms(DType::f32, {4});
  const TensorView columns_apart = x.view().transpose(0, 1);
  const auto forward = [&](TensorView o, TensorView s, ConstTensorView i, ConstTensorView r,
                           ConstTensorView w, double epsilon = 1e-6) {
    rms_norm_forward(o, inverse_rms, s, i, r, w, {.epsilon = epsilon});
  };
  EXPECT_THROW(forward(other_shape, {}, x, {}, weight), InvalidArgument);
  EXPECT_THROW(forward(other_dtype, {}, x, {}, weight), InvalidArgument);
  EXPECT_THROW(forward(half, {}, half, {}, weight), InvalidArgument);
  EXPECT_THROW(forward(columns_apart, {}, columns_apart, {}, inverse_rms), InvalidArgument);
  EXPECT_THROW(forward(out, {}, {}, {}, weight), InvalidArgument);
  EXPECT_THROW(forward({}, {}, x, {}, weight), InvalidArgument);
  EXPECT_THROW(forward(out, {}, x, {}, short_weight), InvalidArgument);
  EXPECT_THROW(forward(out, {}, x, {}, {}), InvalidArgument);
  EXPECT_THROW(forward(out, {}, x, x, weight), InvalidArgument);            // no sum
  EXPECT_THROW(forward(out, out, x, x, weight), InvalidArgument);           // out is sum
  EXPECT_THROW(forward(out, inverse_rms, x, {}, weight), InvalidArgument);  // a sum, no residual
  EXPECT_THROW(forward(out, {}, x, {}, weight, -1), InvalidArgument);
  EXPECT_THROW(forward(out, {}, x, {}, weight, std::nan("")), InvalidArgument);
  TensorView elsewhere = x;
  elsewhere.device = {.kind = Device::Kind::cuda};
  EXPECT_THROW(forward(out, {}, elsewhere, {}, weight), InvalidArgument);

  const OwnedTensor dweight(DType::f32, {8});
  std::vector<std::byte> small(static_cast<size_t>(rms_norm_backward_workspace_bytes(4, 8)) - 1);
  EXPECT_THROW(rms_norm_backward(out, dweight, x, {}, x, inverse_rms, weight, small),
               InvalidArgument);
  EXPECT_THROW(rms_norm_backward(out, {}, x, other_shape, x, inverse_rms, weight, {}),
               InvalidArgument);
  EXPECT_THROW(rms_norm_backward(out, {}, x, {}, x, weight, weight, {}), InvalidArgument);
}

TEST(RmsNorm, ErrorNamesTheArgumentAndBothShapes) {
  const OwnedTensor x(DType::f32, {4, 8});
  const OwnedTensor weight(DType::f32, {7});
  try {
    rms_norm_forward(x, {}, {}, x, {}, weight);
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_STREQ(error.what(), "rms_norm_forward: weight: expected shape (8), got (7) f32");
  }
}

}  // namespace
}  // namespace flashloom
