// Weights in blocks, and magnitudes.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <optional>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/tensor_for_test.h"
#include "flashloom/ops/linear/gemm.h"
#include "flashloom/ops/linear/test_blocks.h"
#include "flashloom/ops/linear/test_matrix.h"
#include "flashloom/ops/lora_linear/lora_linear.h"

namespace flashloom {
namespace {

// Three projections of one input: with a magnitude and a bias, with an adapter alone, with a
// magnitude of its own again. `blocked`: the first and last weights are in blocks.
template <class T>
struct Group {
  static constexpr std::array<int64_t, 3> kOutputs = {70, 33, 41};
  static constexpr std::array<int64_t, 3> kRanks = {4, 6, 4};
  static constexpr int64_t kAllRanks = 14;
  static constexpr int64_t kScaled = 70 + 41;

  Group(int64_t tokens, int64_t inputs, bool blocked)
      : x(tokens, inputs, 1, 2),
        dx(tokens, inputs, 2, 1),
        hidden(tokens, kAllRanks, 3),
        dhidden(tokens, kAllRanks, 4),
        scratch(tokens, kScaled, 5),
        a(kAllRanks, inputs, 6),
        da(kAllRanks, inputs, 7) {
    for (size_t i = 0; i < 3; ++i) {
      weight.emplace_back(kOutputs[i], inputs, 10 + i, 1);
      b.emplace_back(kOutputs[i], kRanks[i], 20 + i);
      db.emplace_back(kOutputs[i], kRanks[i], 30 + i);
      y.emplace_back(tokens, kOutputs[i], 40 + i, 2);
      dy.emplace_back(tokens, kOutputs[i], 50 + i, 1);
      bias.emplace_back(1, kOutputs[i], 60 + i);
      magnitude.emplace_back(1, kOutputs[i], 70 + i);
      norms.emplace_back(1, kOutputs[i], 80 + i);
      dmagnitude.emplace_back(1, kOutputs[i], 90 + i);
      for (T& norm : norms[i].memory) {
        norm = std::abs(norm) + T{0.5};
      }
    }
    if (blocked) {
      for (const size_t i : {0, 2}) {
        blocks[i].emplace(kOutputs[i], inputs, 15 + i, test_block_format<32, 32>());
      }
    }
  }

  Group(const Group&) = default;

  std::vector<LoraProjection> projections() const {
    std::vector<LoraProjection> list;
    int64_t first = 0;
    for (size_t i = 0; i < 3; ++i) {
      LoraProjection p = {.a = a.view.slice(0, first, kRanks[i]),
                          .b = b[i].view,
                          .scale = 0.5f + static_cast<float>(i)};
      first += kRanks[i];
      if (blocks[i]) {
        p.blocks = blocks[i]->view;
      } else {
        p.weight = weight[i].view;
      }
      if (i == 0) {
        p.bias = bias[i].view.select(0, 0);
      }
      if (i != 1) {
        p.magnitude = magnitude[i].view.select(0, 0);
        p.row_norms = norms[i].view.select(0, 0);
      }
      list.push_back(p);
    }
    return list;
  }

  std::vector<LoraGradients> gradients() const {
    std::vector<LoraGradients> list;
    int64_t first = 0;
    for (size_t i = 0; i < 3; ++i) {
      list.push_back({da.view.slice(0, first, kRanks[i]), db[i].view,
                      i != 1 ? dmagnitude[i].view.select(0, 0) : TensorView()});
      first += kRanks[i];
    }
    return list;
  }

  template <class View>
  static std::vector<View> views(const std::vector<TestMatrix<T>>& matrices) {
    std::vector<View> list;
    for (const auto& matrix : matrices) {
      list.push_back(matrix.view);
    }
    return list;
  }

  void run() {
    lora_linear_forward(views<TensorView>(y), hidden.view, x.view, projections());
    lora_linear_backward(dx.view, gradients(), dhidden.view, views<ConstTensorView>(dy), x.view,
                         hidden.view, projections(), false, scratch.view);
  }

  void run_reference() {
    lora_linear_forward_reference(views<TensorView>(y), hidden.view, x.view, projections());
    lora_linear_backward_reference(dx.view, gradients(), dhidden.view, views<ConstTensorView>(dy),
                                   x.view, hidden.view, projections());
  }

  std::vector<T> outputs() const {
    std::vector<T> all = dx.memory;
    all.insert(all.end(), da.memory.begin(), da.memory.end());
    for (const auto* list : {&y, &db, &dmagnitude}) {
      for (const auto& matrix : *list) {
        all.insert(all.end(), matrix.memory.begin(), matrix.memory.end());
      }
    }
    return all;
  }

  TestMatrix<T> x, dx, hidden, dhidden, scratch, a, da;
  std::vector<TestMatrix<T>> weight, b, db, y, dy, bias, magnitude, norms, dmagnitude;
  std::array<std::optional<TestBlocks>, 3> blocks;
};

TEST(Dora, EqualsTheReference) {
  for (const bool blocked : {false, true}) {
    for (const int64_t tokens : {1, 5, 37}) {
      Group<float> actual(tokens, 64, blocked);
      Group<float> expected(actual);
      actual.run();
      expected.run_reference();
      const std::vector<float> a = actual.outputs();
      const std::vector<float> b = expected.outputs();
      // dA = (scale factor dy B)^T x: sums of 70 and 37 terms below 2.5 * 2, of which each is
      // rounded at most 70 + 37 times.
      const double bound = 0x1p-24 * 70 * 37 * 5 * (70 + 37);
      for (size_t i = 0; i < a.size(); ++i) {
        ASSERT_NEAR(a[i], b[i], bound) << i << " blocked " << blocked << " tokens " << tokens;
      }
    }
  }
}

TEST(Dora, BlocksGiveTheBitsOfTheDecodedWeights) {
  Group<float> blocked(30, 96, true);
  Group<float> plain(blocked);
  for (const size_t i : {0, 2}) {
    const std::vector<float> decoded = decoded_matrix(blocked.blocks[i]->view);
    for (int64_t n = 0; n < Group<float>::kOutputs[i]; ++n) {
      std::copy_n(decoded.data() + n * 96, 96, plain.weight[i].view.select(0, n).as<float>());
    }
    plain.blocks[i].reset();
  }
  blocked.run();
  plain.run();
  EXPECT_EQ(blocked.outputs(), plain.outputs());
}

TEST(Dora, GradientsOfTheReferenceAreFiniteDifferences) {
  Group<double> group(3, 4, false);
  const auto objective = [&] {
    Group<double> run(group);
    lora_linear_forward_reference(Group<double>::views<TensorView>(run.y), run.hidden.view,
                                  group.x.view, group.projections());
    double sum = 0;
    for (size_t i = 0; i < 3; ++i) {
      sum += dot(run.y[i].view, group.dy[i].view);
    }
    return sum;
  };
  for (auto* list : {&group.db, &group.dmagnitude}) {
    for (auto& matrix : *list) {
      matrix.memory.assign(matrix.memory.size(), 0.0);
    }
  }
  group.da.memory.assign(group.da.memory.size(), 0.0);
  group.run_reference();
  const auto expect_gradient = [&](const TensorView& values, const TensorView& gradient) {
    for_each_index(values, [&](auto index) {
      // The objective is linear in each entry: any step is exact.
      const double expected = finite_difference(values, index, objective, 0.5);
      EXPECT_NEAR(load_element(gradient, index), expected, 1e-11);
    });
  };
  expect_gradient(group.x.view, group.dx.view);
  expect_gradient(group.a.view, group.da.view);
  for (size_t i = 0; i < 3; ++i) {
    expect_gradient(group.b[i].view, group.db[i].view);
  }
  expect_gradient(group.magnitude[0].view, group.dmagnitude[0].view);
  expect_gradient(group.magnitude[2].view, group.dmagnitude[2].view);
}

TEST(Dora, RowNormsEqualTheReference) {
  for (const bool blocked : {false, true}) {
    const Group<float> group(1, 96, blocked);
    for (const LoraProjection& p : group.projections()) {
      TestMatrix<> actual(1, p.outputs(), 1);
      TestMatrix<> expected(1, p.outputs(), 1);
      const TestMatrix<> scratch(thread_count(), dora_scratch_columns(96), 2);
      dora_row_norms(actual.view.select(0, 0), p, scratch.view);
      dora_row_norms_reference(expected.view.select(0, 0), p);
      for (int64_t n = 0; n < p.outputs(); ++n) {
        // A root of 96 squares, each of a sum of 7 terms.
        EXPECT_NEAR(actual.view.as<float>()[n] / expected.view.as<float>()[n], 1, 100 * 0x1p-24);
      }
    }
  }
}

TEST(Dora, TheNormOfAMagnitudeLeavesTheLinearAsItIs) {
  const Group<float> group(12, 64, false);
  LoraProjection p = group.projections()[0];
  const TestMatrix<> scratch(thread_count(), dora_scratch_columns(64), 2);
  const TestMatrix<> norms(1, p.outputs(), 3);
  dora_row_norms(norms.view.select(0, 0), p, scratch.view);
  p.magnitude = p.row_norms = norms.view.select(0, 0);
  const TestMatrix<> with(12, p.outputs(), 4);
  const TestMatrix<> without(12, p.outputs(), 4);
  const TestMatrix<> hidden(12, 4, 5);
  const std::array<TensorView, 1> y = {with.view};
  lora_linear_forward(y, hidden.view, group.x.view, {&p, 1});
  p.magnitude = p.row_norms = {};
  const std::array<TensorView, 1> z = {without.view};
  lora_linear_forward(z, hidden.view, group.x.view, {&p, 1});
  for (int64_t i = 0; i < with.view.size(); ++i) {
    EXPECT_NEAR(with.memory[i], without.memory[i], 64 * 4 * 0x1p-24);
  }
}

TEST(Dora, GivesTheSameBitsForAnyNumberOfThreads) {
  const auto run = [](int threads) {
    set_thread_count(threads);
    Group<float> group(140, 192, true);
    group.run();
    TestMatrix<> norms(1, 70, 1);
    const TestMatrix<> scratch(threads, dora_scratch_columns(192), 2);
    dora_row_norms(norms.view.select(0, 0), group.projections()[0], scratch.view);
    set_thread_count(0);
    std::vector<float> all = group.outputs();
    all.insert(all.end(), norms.memory.begin(), norms.memory.end());
    return all;
  };
  const std::vector<float> one = run(1);
  EXPECT_EQ(run(2), one);
  EXPECT_EQ(run(3), one);
}

TEST(Dora, RejectsBadArguments) {
  Group<float> group(6, 32, true);
  const auto forward = [&](const std::vector<LoraProjection>& projections) {
    lora_linear_forward(Group<float>::views<TensorView>(group.y), group.hidden.view, group.x.view,
                        projections);
  };
  EXPECT_NO_THROW(forward(group.projections()));
  auto projections = group.projections();
  projections[0].row_norms = {};
  EXPECT_THROW(forward(projections), InvalidArgument);
  projections = group.projections();
  projections[2].magnitude = projections[0].magnitude;
  EXPECT_THROW(forward(projections), InvalidArgument);
  projections = group.projections();
  projections[0].weight = group.weight[0].view;  // beside blocks
  EXPECT_THROW(forward(projections), InvalidArgument);
  EXPECT_THROW(lora_linear_backward(group.dx.view, group.gradients(), group.dhidden.view,
                                    Group<float>::views<ConstTensorView>(group.dy), group.x.view,
                                    group.hidden.view, group.projections()),
               InvalidArgument)
      << "without scratch";
}

}  // namespace
}  // namespace flashloom
