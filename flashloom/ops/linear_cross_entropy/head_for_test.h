#pragma once

#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "flashloom/ops/linear/test_matrix.h"
#include "flashloom/ops/linear_cross_entropy/linear_cross_entropy.h"

namespace flashloom {

inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Everything that a call reads and writes, with random numbers in it.
template <class T>
struct Head {
  // A third of the rows is ignored.
  Head(int64_t row_count, int64_t channel_count, int64_t vocabulary_size, int64_t gap = 0)
      : tokens(row_count),
        channels(channel_count),
        vocabulary(vocabulary_size),
        hidden(tokens, channels, 1, gap),
        weight(vocabulary, channels, 2, gap),
        loss(1, tokens, 3),
        dhidden(tokens, channels, 4, gap),
        dweight(vocabulary, channels, 5, gap) {
    RandomSequence random(6, RandomStream::test);
    for (int64_t t = 0; t < tokens; ++t) {
      const auto label = static_cast<int32_t>(random.below(static_cast<uint32_t>(vocabulary)));
      labels.push_back(t % 3 == 1 ? kIgnoredLabel : label);
    }
  }

  TensorView loss_view() const { return loss.view.select(0, 0); }

  ConstTensorView labels_view() const { return {labels.data(), {tokens}}; }

  void run(const LinearCrossEntropyOptions& options = {}, bool with_dhidden = true,
           bool with_dweight = true) {
    std::vector<std::byte> workspace(
        static_cast<size_t>(linear_cross_entropy_workspace_bytes(tokens, channels, vocabulary,
                                                                 with_dhidden || with_dweight)),
        std::byte{0xff});  // NaN: garbage must not matter
    linear_cross_entropy(loss_view(), with_dhidden ? dhidden.view : TensorView(),
                         with_dweight ? dweight.view : TensorView(), hidden.view, weight.view,
                         labels_view(), workspace, options);
  }

  void run_reference(const LinearCrossEntropyOptions& options = {}) {
    linear_cross_entropy_reference(loss_view(), dhidden.view, dweight.view, hidden.view,
                                   weight.view, labels_view(), options);
  }

  int64_t tokens, channels, vocabulary;
  TestMatrix<T> hidden, weight, loss, dhidden, dweight;
  std::vector<int32_t> labels;
};

inline void expect_near(const TestMatrix<>& actual, const TestMatrix<>& expected, double bound) {
  for (size_t i = 0; i < actual.memory.size(); ++i) {
    ASSERT_NEAR(actual.memory[i], expected.memory[i], bound) << "element " << i;
  }
}

}  // namespace flashloom
