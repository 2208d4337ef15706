#include "flashloom/ops/linear/linear.h"

#include <gtest/gtest.h>

#include <cmath>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/tensor_for_test.h"
#include "flashloom/ops/linear/test_matrix.h"

namespace flashloom {
namespace {

// One linear layer with all its tensors, rows apart by odd gaps.
template <class T>
struct Layer {
  Layer(int64_t tokens, int64_t outputs, int64_t inputs)
      : x(tokens, inputs, 1, 3),
        weight(outputs, inputs, 2, 1),
        bias(1, outputs, 3),
        y(tokens, outputs, 4, 2),
        dy(tokens, outputs, 5, 5),
        dx(tokens, inputs, 6, 1),
        dweight(outputs, inputs, 7, 4),
        dbias(1, outputs, 8) {}

  TensorView bias_view() const { return bias.view.select(0, 0); }

  TensorView dbias_view() const { return dbias.view.select(0, 0); }

  TestMatrix<T> x, weight, bias, y, dy, dx, dweight, dbias;
};

void expect_near(const TestMatrix<>& actual, const TestMatrix<>& expected, int64_t depth) {
  // |entries| <= 1: a sum of depth + 1 terms is off by at most depth + 2 roundings of its size.
  const double bound = 0x1p-24 * std::pow(static_cast<double>(depth) + 3, 2);
  for (size_t i = 0; i < actual.memory.size(); ++i) {
    ASSERT_NEAR(actual.memory[i], expected.memory[i], bound) << "element " << i;
  }
}

class LinearSizes : public testing::TestWithParam<std::array<int64_t, 3>> {};

TEST_P(LinearSizes, EqualsTheReference) {
  const auto [tokens, outputs, inputs] = GetParam();
  for (const bool with_bias : {false, true}) {
    for (const bool accumulate : {false, true}) {
      Layer<float> actual(tokens, outputs, inputs);
      Layer<float> expected(actual);
      const ConstTensorView bias =
          with_bias ? ConstTensorView(actual.bias_view()) : ConstTensorView();
      linear_forward(actual.y.view, actual.x.view, actual.weight.view, bias);
      linear_forward_reference(expected.y.view, actual.x.view, actual.weight.view, bias);
      expect_near(actual.y, expected.y, inputs);
      linear_backward(actual.dx.view, actual.dweight.view,
                      with_bias ? actual.dbias_view() : TensorView(), actual.dy.view, actual.x.view,
                      actual.weight.view, {.accumulate_input = accumulate});
      linear_backward_reference(
          expected.dx.view, expected.dweight.view, with_bias ? expected.dbias_view() : TensorView(),
          actual.dy.view, actual.x.view, actual.weight.view, {.accumulate_input = accumulate});
      expect_near(actual.dx, expected.dx, outputs);
      expect_near(actual.dweight, expected.dweight, tokens);
      expect_near(actual.dbias, expected.dbias, tokens);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Linear, LinearSizes,
                         testing::Values(std::array<int64_t, 3>{1, 1, 1},
                                         std::array<int64_t, 3>{37, 65, 19},
                                         std::array<int64_t, 3>{130, 200, 33},
                                         std::array<int64_t, 3>{3, 67, 0},
                                         std::array<int64_t, 3>{0, 5, 4}));

TEST(Linear, GradientsOfTheReferenceAreFiniteDifferences) {
  Layer<double> layer(3, 5, 4);
  const auto objective = [&] {
    TestMatrix<double> y(layer.y);
    linear_forward_reference(y.view, layer.x.view, layer.weight.view, layer.bias_view());
    return dot(y.view, layer.dy.view);
  };
  const TestMatrix<double> dweight_before(layer.dweight);
  const TestMatrix<double> dbias_before(layer.dbias);
  linear_backward_reference(layer.dx.view, layer.dweight.view, layer.dbias_view(), layer.dy.view,
                            layer.x.view, layer.weight.view);
  const auto expect_gradient = [&](const TensorView& values, const TensorView& gradient,
                                   const TestMatrix<double>* before) {
    for_each_index(values, [&](auto index) {
      // The objective is linear in each entry: any step is exact.
      const double expected = finite_difference(values, index, objective, 0.5);
      const double start = before != nullptr ? load_element(before->view, index) : 0;
      EXPECT_NEAR(load_element(gradient, index) - start, expected, 1e-12);
    });
  };
  expect_gradient(layer.x.view, layer.dx.view, nullptr);
  expect_gradient(layer.weight.view, layer.dweight.view, &dweight_before);
  expect_gradient(layer.bias.view, layer.dbias.view, &dbias_before);
}

TEST(Linear, GivesTheSameBitsForAnyNumberOfThreads) {
  const auto run = [](int threads) {
    Layer<float> layer(150, 260, 70);
    set_thread_count(threads);
    linear_forward(layer.y.view, layer.x.view, layer.weight.view, layer.bias_view());
    linear_backward(layer.dx.view, layer.dweight.view, layer.dbias_view(), layer.dy.view,
                    layer.x.view, layer.weight.view);
    set_thread_count(0);
    return std::vector{layer.y.memory, layer.dx.memory, layer.dweight.memory, layer.dbias.memory};
  };
  const auto one = run(1);
  for (const int threads : {2, 3, 5}) {
    EXPECT_EQ(run(threads), one) << threads;
  }
}

TEST(Linear, AbsentOutputsNeedNoInputs) {
  Layer<float> all(20, 30, 10);
  Layer<float> some(all);
  linear_backward(all.dx.view, all.dweight.view, all.dbias_view(), all.dy.view, all.x.view,
                  all.weight.view);
  linear_backward(some.dx.view, {}, {}, some.dy.view, {}, some.weight.view);
  linear_backward({}, some.dweight.view, {}, some.dy.view, some.x.view, {});
  linear_backward({}, {}, some.dbias_view(), some.dy.view, {}, {});
  EXPECT_EQ(all.dx.memory, some.dx.memory);
  EXPECT_EQ(all.dweight.memory, some.dweight.memory);
  EXPECT_EQ(all.dbias.memory, some.dbias.memory);
}

TEST(Linear, RejectsBadArguments) {
  Layer<float> layer(4, 6, 5);
  const TensorView x = layer.x.view;
  const TensorView weight = layer.weight.view;
  EXPECT_THROW(linear_forward(layer.y.view, x.slice(1, 0, 4), weight), InvalidArgument);
  EXPECT_THROW(linear_forward(layer.y.view.slice(0, 0, 3), x, weight), InvalidArgument);
  EXPECT_THROW(linear_forward(layer.y.view, x, weight, layer.bias_view().slice(0, 0, 5)),
               InvalidArgument);
  EXPECT_THROW(linear_forward({}, x, weight), InvalidArgument);
  EXPECT_THROW(linear_backward(layer.dx.view, {}, {}, layer.dy.view, x, {}), InvalidArgument);
  EXPECT_THROW(linear_backward({}, layer.dweight.view, {}, layer.dy.view, {}, weight),
               InvalidArgument);
  EXPECT_THROW(
      linear_backward({}, {}, layer.dbias_view().slice(0, 0, 2), layer.dy.view, {}, weight),
      InvalidArgument);
  try {
    linear_forward(layer.y.view, x, weight.slice(1, 0, 3));
    FAIL() << "accepted a wrong shape";
  } catch (const InvalidArgument& error) {
    EXPECT_STREQ(error.what(), "linear_forward: x: expected shape (any, 3), got (4, 5) f32");
  }
}

}  // namespace
}  // namespace flashloom
