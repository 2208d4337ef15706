#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/tensor_for_test.h"
#include "flashloom/ops/layer_norm/layer_norm_reference.h"

namespace flashloom {
namespace {

// Half an ulp of the storage, and for two sums of N terms in f32 over at least 4 partial sums N / 4
// roundings of terms of the size of x, here up to 16 deviations.
double bound(DType dtype, int64_t columns) {
  const double arithmetic = (static_cast<double>(columns) / 2 + 32) * 0x1p-24;
  return arithmetic + (dtype == DType::bf16 ? 0x1p-8 : 0);
}

struct Case {
  OwnedTensor input, residual, weight, bias, dout, dresidual;

  Case(DType dtype, DType weight_dtype, int64_t rows, int64_t columns, int64_t padding = 0)
      : input(normal_tensor(dtype, {rows, columns}, 1, 2, 3, padding)),
        residual(normal_tensor(dtype, {rows, columns}, 2, 1, 0.5, padding)),
        weight(normal_tensor(weight_dtype, {columns}, 3, 0.3, 1)),
        bias(normal_tensor(weight_dtype, {columns}, 6)),
        dout(normal_tensor(dtype, {rows, columns}, 4, 1, 0.7, padding)),
        dresidual(normal_tensor(dtype, {rows, columns}, 5, 1, 0, padding)) {}
};

std::vector<std::byte> workspace_for(int64_t rows, int64_t columns) {
  return std::vector<std::byte>(  // NaN: garbage must not matter
      static_cast<size_t>(layer_norm_backward_workspace_bytes(rows, columns)), std::byte{0xff});
}

class LayerNormDType : public testing::TestWithParam<std::tuple<DType, DType>> {};

// A single column has no deviation: r is 1 / sqrt(epsilon), so an error of x comes out 316 times as
// large, and its case has a test of its own below.
TEST_P(LayerNormDType, ForwardEqualsTheReference) {
  const auto [dtype, weight_dtype] = GetParam();
  for (const int64_t columns : {3, 7, 64, 100, 768, 1030}) {
    const int64_t rows = 37;
    const Case c(dtype, weight_dtype, rows, columns, 3);
    for (const bool with_bias : {false, true}) {
      for (const bool with_residual : {false, true}) {
        const OwnedTensor out(dtype, {rows, columns}, 5);
        const OwnedTensor sum(dtype, {rows, columns}, 2);
        const OwnedTensor mean(DType::f32, {rows});
        const OwnedTensor inverse(DType::f32, {rows});
        const OwnedTensor exact(DType::f64, {rows, columns});
        const OwnedTensor exact_sum(dtype, {rows, columns});
        const OwnedTensor exact_mean(DType::f64, {rows});
        const OwnedTensor exact_inverse(DType::f64, {rows});
        const ConstTensorView bias = with_bias ? c.bias.view() : ConstTensorView();
        const ConstTensorView residual = with_residual ? c.residual.view() : ConstTensorView();
        layer_norm_forward(out, mean, inverse, with_residual ? sum.view() : TensorView(), c.input,
                           residual, c.weight, bias);
        layer_norm_forward_reference(exact, exact_mean, exact_inverse, exact_sum, c.input, residual,
                                     c.weight, bias);
        if (with_residual) {
          EXPECT_EQ(max_error(sum, exact_sum), 0) << columns;
        }
        // Few columns may lie close together: r, and with it the error of y, is as large as that.
        double largest_r = 1;
        for (int64_t row = 0; row < rows; ++row) {
          largest_r = std::max(largest_r, exact_inverse.at({row}));
        }
        EXPECT_LE(max_error(mean, exact_mean), bound(DType::f32, columns)) << columns;
        EXPECT_LE(max_error(inverse, exact_inverse), bound(DType::f32, columns) * largest_r);
        const double storage = dtype == DType::bf16 ? 0x1p-8 : 0;
        EXPECT_LE(max_error(out, exact), bound(DType::f32, columns) * largest_r + storage)
            << columns;
      }
    }
  }
}

TEST_P(LayerNormDType, BackwardEqualsTheReference) {
  const auto [dtype, weight_dtype] = GetParam();
  for (const int64_t columns : {3, 7, 64, 100, 768, 1030}) {
    const int64_t rows = 70;  // three tiles of dweight and dbias
    const Case c(dtype, weight_dtype, rows, columns, 3);
    const OwnedTensor out(dtype, {rows, columns});
    const OwnedTensor mean(DType::f32, {rows});
    const OwnedTensor inverse(DType::f32, {rows});
    layer_norm_forward(out, mean, inverse, {}, c.input, {}, c.weight, c.bias);
    std::vector<std::byte> workspace = workspace_for(rows, columns);
    double largest_r = 1;
    for (int64_t row = 0; row < rows; ++row) {
      largest_r = std::max(largest_r, inverse.at({row}));
    }
    for (const bool with_residual : {false, true}) {
      const ConstTensorView dresidual = with_residual ? c.dresidual.view() : ConstTensorView();
      const OwnedTensor dinput(dtype, {rows, columns}, 1);
      const OwnedTensor dweight = normal_tensor(DType::f32, {columns}, 6);
      const OwnedTensor dbias = normal_tensor(DType::f32, {columns}, 7);
      const OwnedTensor exact(DType::f64, {rows, columns});
      const OwnedTensor exact_dweight = to_dtype(dweight, DType::f64);
      const OwnedTensor exact_dbias = to_dtype(dbias, DType::f64);
      layer_norm_backward(dinput, dweight, dbias, c.dout, dresidual, c.input, mean, inverse,
                          c.weight, workspace);
      layer_norm_backward_reference(exact, exact_dweight, exact_dbias, c.dout, dresidual, c.input,
                                    mean, inverse, c.weight);
      // dx = r times a few units, each with the errors of a sum over the row.
      EXPECT_LE(max_error(dinput, exact), 4 * bound(dtype, columns) * largest_r) << columns;
      // 70 terms of at most 4 x 4, each rounded twice, added one after another.
      EXPECT_LE(max_error(dweight, exact_dweight), 70 * 16 * 2 * 0x1p-24) << columns;
      EXPECT_LE(max_error(dbias, exact_dbias), 70 * 4 * 0x1p-24) << columns;

      const OwnedTensor alone(DType::f32, {columns});
      const OwnedTensor same(dtype, {rows, columns}, 1);
      OwnedTensor both = alone;
      layer_norm_backward(same, both, dbias, c.dout, dresidual, c.input, mean, inverse, c.weight,
                          workspace);
      layer_norm_backward(same, alone, {}, c.dout, dresidual, c.input, mean, inverse, c.weight,
                          workspace);
      EXPECT_TRUE(same_bits(alone, both));
      EXPECT_TRUE(same_bits(same, dinput));
    }
  }
}

TEST_P(LayerNormDType, AllowsTheAliasesOfTheContract) {
  const auto [dtype, weight_dtype] = GetParam();
  const int64_t rows = 9;
  const int64_t columns = 77;
  const Case c(dtype, weight_dtype, rows, columns);
  const OwnedTensor out(dtype, {rows, columns});
  const OwnedTensor sum(dtype, {rows, columns});
  const OwnedTensor mean(DType::f32, {rows});
  const OwnedTensor inverse(DType::f32, {rows});
  layer_norm_forward(out, mean, inverse, sum, c.input, c.residual, c.weight, c.bias);
  const OwnedTensor stream = c.residual;  // the residual stream in place, the norm over the input
  const OwnedTensor normed = c.input;
  layer_norm_forward(normed, {}, {}, stream, normed, stream, c.weight, c.bias);
  EXPECT_TRUE(same_bits(normed, out));
  EXPECT_TRUE(same_bits(stream, sum));

  const OwnedTensor dinput(dtype, {rows, columns});
  const auto backward = [&](TensorView dx, ConstTensorView dy, ConstTensorView other) {
    layer_norm_backward(dx, {}, {}, dy, other, sum, mean, inverse, c.weight, {});
  };
  backward(dinput, c.dout, c.dresidual);
  const OwnedTensor over_residual = c.dresidual;
  backward(over_residual, c.dout, over_residual);
  EXPECT_TRUE(same_bits(over_residual, dinput));
  const OwnedTensor over_dout = c.dout;
  backward(over_dout, over_dout, c.dresidual);
  EXPECT_TRUE(same_bits(over_dout, dinput));
}

TEST_P(LayerNormDType, GivesTheSameBitsForAnyNumberOfThreads) {
  const auto [dtype, weight_dtype] = GetParam();
  const int64_t rows = 300;
  const int64_t columns = 577;
  const Case c(dtype, weight_dtype, rows, columns);
  std::vector<std::byte> workspace = workspace_for(rows, columns);
  std::vector<OwnedTensor> results[2];
  for (int run = 0; run < 2; ++run) {
    set_thread_count(run == 0 ? 1 : 5);
    const OwnedTensor out(dtype, {rows, columns});
    const OwnedTensor sum(dtype, {rows, columns});
    const OwnedTensor mean(DType::f32, {rows});
    const OwnedTensor inverse(DType::f32, {rows});
    const OwnedTensor dinput(dtype, {rows, columns});
    const OwnedTensor dweight(DType::f32, {columns});
    const OwnedTensor dbias(DType::f32, {columns});
    layer_norm_forward(out, mean, inverse, sum, c.input, c.residual, c.weight, c.bias);
    layer_norm_backward(dinput, dweight, dbias, c.dout, {}, sum, mean, inverse, c.weight,
                        workspace);
    results[run] = {out, sum, mean, inverse, dinput, dweight, dbias};
  }
  set_thread_count(0);
  for (size_t i = 0; i < results[0].size(); ++i) {
    EXPECT_TRUE(same_bits(results[0][i], results[1][i])) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(, LayerNormDType,
                         testing::Values(std::tuple(DType::f32, DType::f32),
                                         std::tuple(DType::bf16, DType::bf16),
                                         std::tuple(DType::bf16, DType::f32),
                                         std::tuple(DType::f32, DType::bf16)));

TEST(LayerNorm, ReferenceGradientsEqualFiniteDifferences) {
  const int64_t rows = 3;
  const int64_t columns = 5;
  const OwnedTensor input = normal_tensor(DType::f64, {rows, columns}, 1);
  const OwnedTensor residual = normal_tensor(DType::f64, {rows, columns}, 2);
  const OwnedTensor weight = normal_tensor(DType::f64, {columns}, 3);
  const OwnedTensor bias = normal_tensor(DType::f64, {columns}, 6);
  const OwnedTensor dout = normal_tensor(DType::f64, {rows, columns}, 4);
  const OwnedTensor dsum = normal_tensor(DType::f64, {rows, columns}, 5);
  const OwnedTensor out(DType::f64, {rows, columns});
  const OwnedTensor sum(DType::f64, {rows, columns});
  const OwnedTensor mean(DType::f64, {rows});
  const OwnedTensor inverse(DType::f64, {rows});
  const LayerNormOptions options = {.epsilon = 0.1};  // large enough that its part shows
  const auto value = [&] {
    layer_norm_forward_reference(out, mean, inverse, sum, input, residual, weight, bias, options);
    return dot(out, dout) + dot(sum, dsum);
  };
  value();
  const OwnedTensor dinput(DType::f64, {rows, columns});
  const OwnedTensor dweight(DType::f64, {columns});
  const OwnedTensor dbias(DType::f64, {columns});
  layer_norm_backward_reference(dinput, dweight, dbias, dout, dsum, sum, mean, inverse, weight);
  for_each_index(input.view(), [&](auto index) {
    EXPECT_NEAR(load_element(dinput, index), finite_difference(input, index, value), 1e-8);
    EXPECT_NEAR(load_element(dinput, index), finite_difference(residual, index, value), 1e-8);
  });
  for_each_index(weight.view(), [&](auto index) {
    EXPECT_NEAR(load_element(dweight, index), finite_difference(weight, index, value), 1e-8);
    EXPECT_NEAR(load_element(dbias, index), finite_difference(bias, index, value), 1e-8);
  });
}

TEST(LayerNorm, NormalisesToMeanZeroAndDeviationOne) {
  const int64_t columns = 768;
  const OwnedTensor input = normal_tensor(DType::f32, {4, columns}, 1, 5, -20);
  OwnedTensor weight(DType::f32, {columns});
  weight.fill(1);
  const OwnedTensor out(DType::f32, {4, columns});
  layer_norm_forward(out, {}, {}, {}, input, {}, weight, {}, {.epsilon = 0});
  for (int64_t row = 0; row < 4; ++row) {
    double sum = 0;
    double squares = 0;
    for (int64_t i = 0; i < columns; ++i) {
      sum += out.at({row, i});
      squares += out.at({row, i}) * out.at({row, i});
    }
    EXPECT_NEAR(sum / columns, 0, 1e-6);  // the mean, 20, is rounded to 1e-6
    EXPECT_NEAR(squares / columns, 1, 1e-5);
  }
}

TEST(LayerNorm, AConstantAddedToARowChangesNothing) {
  // Sums of squares less the square of the mean would lose all digits at 4,096. Multiples of 1/256
  // are exact beside it.
  const OwnedTensor input = normal_tensor(DType::f32, {5, 200}, 1);
  const OwnedTensor shifted = input;
  for_each_index(shifted.view(), [&](auto index) {
    const double x = std::round(load_element(input, index) * 256) / 256;
    store_element(input.view(), index, x);
    store_element(shifted.view(), index, x + 4096);
  });
  const OwnedTensor weight = normal_tensor(DType::f32, {200}, 2);
  const OwnedTensor out(DType::f32, {5, 200});
  const OwnedTensor out_of_shifted(DType::f32, {5, 200});
  layer_norm_forward(out, {}, {}, {}, input, {}, weight, {});
  layer_norm_forward(out_of_shifted, {}, {}, {}, shifted, {}, weight, {});
  EXPECT_LE(max_error(out_of_shifted, out), 2e-3);  // an ulp of 4,096 is 5e-4
}

TEST(LayerNorm, GradientIsOrthogonalToItsInputAndToOnes) {
  // y changes neither with the length of x (epsilon 0) nor with a constant added to it.
  const int64_t columns = 200;
  const OwnedTensor input = normal_tensor(DType::f32, {1, columns}, 1);
  const OwnedTensor weight = normal_tensor(DType::f32, {columns}, 2);
  const OwnedTensor dout = normal_tensor(DType::f32, {1, columns}, 3, 1, 1);
  OwnedTensor ones(DType::f32, {1, columns});
  ones.fill(1);
  const OwnedTensor out(DType::f32, {1, columns});
  const OwnedTensor mean(DType::f32, {1});
  const OwnedTensor inverse(DType::f32, {1});
  const OwnedTensor dinput(DType::f32, {1, columns});
  layer_norm_forward(out, mean, inverse, {}, input, {}, weight, {}, {.epsilon = 0});
  layer_norm_backward(dinput, {}, {}, dout, {}, input, mean, inverse, weight, {});
  const double length = std::sqrt(dot(dinput, dinput));
  EXPECT_GT(length, 1);
  for (const OwnedTensor& direction : {input, ones}) {
    const double lengths = length * std::sqrt(dot(direction, direction));
    EXPECT_LE(std::fabs(dot(dinput, direction)) / lengths, bound(DType::f32, columns));
  }
}

TEST(LayerNorm, ASingleColumnGivesTheBias) {
  const OwnedTensor input = normal_tensor(DType::f32, {6, 1}, 1, 100);
  const OwnedTensor weight = normal_tensor(DType::f32, {1}, 2);
  const OwnedTensor bias = normal_tensor(DType::f32, {1}, 3);
  const OwnedTensor out(DType::f32, {6, 1});
  layer_norm_forward(out, {}, {}, {}, input, {}, weight, bias);
  for (int64_t row = 0; row < 6; ++row) {
    EXPECT_EQ(out.at({row, 0}), bias.at({0}));
  }
}

TEST(LayerNorm, AcceptsNoRows) {
  const OwnedTensor none(DType::f32, {0, 8});
  const OwnedTensor weight(DType::f32, {8});
  EXPECT_NO_THROW(layer_norm_forward(none, {}, {}, {}, none, {}, weight, {}));
}

TEST(LayerNorm, RejectsBadArguments) {
  const OwnedTensor x(DType::f32, {4, 8});
  const OwnedTensor other_shape(DType::f32, {4, 7});
  const OwnedTensor other_dtype(DType::bf16, {4, 8});
  const OwnedTensor half(DType::f16, {4, 8});
  const OwnedTensor out(DType::f32, {4, 8});
  const OwnedTensor weight(DType::f32, {8});
  const OwnedTensor short_weight(DType::f32, {7});
  const OwnedTensor narrow_bias(DType::bf16, {8});
  const OwnedTensor rows(DType::f32, {4});
  const auto forward = [&](TensorView o, TensorView s, ConstTensorView i, ConstTensorView r,
                           ConstTensorView w, ConstTensorView b, double epsilon = 1e-5) {
    layer_norm_forward(o, rows, rows, s, i, r, w, b, {.epsilon = epsilon});
  };
  EXPECT_THROW(forward(other_shape, {}, x, {}, weight, {}), InvalidArgument);
  EXPECT_THROW(forward(other_dtype, {}, x, {}, weight, {}), InvalidArgument);
  EXPECT_THROW(forward(half, {}, half, {}, weight, {}), InvalidArgument);
  EXPECT_THROW(forward({}, {}, x, {}, weight, {}), InvalidArgument);
  EXPECT_THROW(forward(out, {}, x.view().transpose(0, 1), {}, rows, {}), InvalidArgument);
  EXPECT_THROW(forward(out, {}, x, {}, short_weight, {}), InvalidArgument);
  EXPECT_THROW(forward(out, {}, x, {}, {}, {}), InvalidArgument);
  EXPECT_THROW(forward(out, {}, x, {}, weight, short_weight), InvalidArgument);
  EXPECT_THROW(forward(out, {}, x, {}, weight, narrow_bias), InvalidArgument);
  EXPECT_THROW(forward(out, {}, x, x, weight, {}), InvalidArgument);     // no sum
  EXPECT_THROW(forward(out, out, x, x, weight, {}), InvalidArgument);    // out is sum
  EXPECT_THROW(forward(out, rows, x, {}, weight, {}), InvalidArgument);  // a sum, no residual
  EXPECT_THROW(forward(out, {}, x, {}, weight, {}, -1), InvalidArgument);
  EXPECT_THROW(forward(out, {}, x, {}, weight, {}, std::nan("")), InvalidArgument);

  const OwnedTensor dweight(DType::f32, {8});
  std::vector<std::byte> small(static_cast<size_t>(layer_norm_backward_workspace_bytes(4, 8)) - 1);
  const auto backward = [&](TensorView dw, TensorView db, ConstTensorView other,
                            ConstTensorView mean) {
    layer_norm_backward(out, dw, db, x, other, x, mean, rows, weight, small);
  };
  EXPECT_NO_THROW(backward({}, {}, {}, rows));
  EXPECT_THROW(backward(dweight, {}, {}, rows), InvalidArgument);
  EXPECT_THROW(backward({}, dweight, {}, rows), InvalidArgument);
  EXPECT_THROW(backward({}, {}, other_shape, rows), InvalidArgument);
  EXPECT_THROW(backward({}, {}, {}, {}), InvalidArgument);
}

TEST(LayerNorm, ErrorNamesTheArgumentAndBothShapes) {
  const OwnedTensor x(DType::f32, {4, 8});
  const OwnedTensor weight(DType::f32, {7});
  try {
    layer_norm_forward(x, {}, {}, {}, x, {}, weight, {});
    FAIL();
  } catch (const InvalidArgument& error) {
    EXPECT_STREQ(error.what(), "layer_norm_forward: weight: expected shape (8), got (7) f32");
  }
}

}  // namespace
}  // namespace flashloom
