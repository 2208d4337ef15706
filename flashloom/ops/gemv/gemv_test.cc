#include "flashloom/ops/gemv/gemv.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/philox.h"

namespace flashloom {
namespace {

std::vector<float> numbers(size_t count, uint64_t seed) {
  RandomSequence random(seed, RandomStream::test);
  std::vector<float> values(count);
  for (float& value : values) {
    value = random.uniform(-1, 1);
  }
  return values;
}

struct Size {
  int64_t rows, columns;
};

/// Below, at and beyond vectors, groups of rows and tiles.
const std::vector<Size> kSizes = {{1, 1}, {3, 7}, {4, 16}, {5, 33}, {130, 576}, {575, 257}};

TEST(Gemv, EqualsTheReference) {
  for (const auto [rows, columns] : kSizes) {
    const std::vector<float> matrix = numbers(static_cast<size_t>(rows * (columns + 3)), 1);
    const std::vector<float> x = numbers(static_cast<size_t>(columns), 2);
    const std::vector<float> bias = numbers(static_cast<size_t>(rows), 3);
    const ConstTensorView strided =
        ConstTensorView(matrix.data(), {rows, columns + 3}).slice(1, 2, columns);
    std::vector<bf16> half;
    for (const float value : matrix) {
      half.emplace_back(value);
    }
    const ConstTensorView stored =
        ConstTensorView(half.data(), {rows, columns + 3}).slice(1, 2, columns);
    for (const ConstTensorView& view : {strided, stored}) {
      for (const GemvOptions options : {GemvOptions{}, GemvOptions{.alpha = 0.5f, .beta = -2}}) {
        std::vector<float> y = numbers(static_cast<size_t>(rows), 4);
        std::vector<float> expected = y;
        gemv(TensorView(y.data(), {rows}), view, ConstTensorView(x.data(), {columns}),
             ConstTensorView(bias.data(), {rows}), options);
        gemv_reference(TensorView(expected.data(), {rows}), view,
                       ConstTensorView(x.data(), {columns}), ConstTensorView(bias.data(), {rows}),
                       options);
        // Each of K products and sums of numbers below 1 rounds by at most half an ulp.
        const float bound = static_cast<float>(columns + 8) * 6e-8f * 2;
        for (size_t i = 0; i < y.size(); ++i) {
          ASSERT_NEAR(y[i], expected[i], bound) << rows << " x " << columns << " row " << i;
        }
      }
    }
  }
}

TEST(Gemv, DoesNotReadYWithoutBeta) {
  const std::vector<float> matrix = {1, 2};
  const std::vector<float> x = {3, 4};
  std::vector<float> y = {std::numeric_limits<float>::quiet_NaN()};
  gemv(TensorView(y.data(), {1}), ConstTensorView(matrix.data(), {1, 2}),
       ConstTensorView(x.data(), {2}));
  EXPECT_EQ(y[0], 11);
}

TEST(Gemv, HasTheSameBitsForAnyNumberOfThreads) {
  const std::vector<float> matrix = numbers(575 * 257, 1);
  const std::vector<float> x = numbers(257, 2);
  std::vector<float> first;
  for (const int threads : {1, 2, 5}) {
    set_thread_count(threads);
    std::vector<float> y(575);
    gemv(TensorView(y.data(), {575}), ConstTensorView(matrix.data(), {575, 257}),
         ConstTensorView(x.data(), {257}));
    if (first.empty()) {
      first = y;
    }
    EXPECT_EQ(y, first);
  }
  set_thread_count(0);
}

TEST(Gemv, ARowDoesNotDependOnItsNeighbours) {
  const std::vector<float> matrix = numbers(7 * 100, 1);
  const std::vector<float> x = numbers(100, 2);
  std::vector<float> all(7);
  gemv(TensorView(all.data(), {7}), ConstTensorView(matrix.data(), {7, 100}),
       ConstTensorView(x.data(), {100}));
  for (int64_t row = 0; row < 7; ++row) {
    float one = 0;
    gemv(TensorView(&one, {1}), ConstTensorView(matrix.data(), {7, 100}).slice(0, row, 1),
         ConstTensorView(x.data(), {100}));
    EXPECT_EQ(one, all[static_cast<size_t>(row)]);
  }
}

TEST(Gemv, RejectsWrongShapes) {
  std::vector<float> memory(12);
  const TensorView y(memory.data(), {3});
  const ConstTensorView matrix(memory.data(), {3, 4});
  EXPECT_THROW(gemv(y, matrix, ConstTensorView(memory.data(), {3})), InvalidArgument);
  EXPECT_THROW(gemv(TensorView(memory.data(), {4}), matrix, ConstTensorView(memory.data(), {4})),
               InvalidArgument);
  EXPECT_THROW(
      gemv(y, matrix, ConstTensorView(memory.data(), {4}), ConstTensorView(memory.data(), {4})),
      InvalidArgument);
  std::vector<int32_t> integers(12);
  EXPECT_THROW(
      gemv(y, ConstTensorView(integers.data(), {3, 4}), ConstTensorView(memory.data(), {4})),
      InvalidArgument);
}

}  // namespace
}  // namespace flashloom
