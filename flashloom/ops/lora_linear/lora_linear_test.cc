#include "flashloom/ops/lora_linear/lora_linear.h"

#include <gtest/gtest.h>

#include <cmath>
#include <optional>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/tensor_for_test.h"
#include "flashloom/ops/linear/linear.h"
#include "flashloom/ops/linear/test_matrix.h"

namespace flashloom {
namespace {

struct Shape {
  int64_t outputs;
  int64_t rank;  // 0: no adapter
  bool bias;
};

// A group of projections with all its tensors. `joined`: all A, and all dA, are rows of one tensor.
template <class T>
struct Group {
  Group(int64_t tokens, int64_t inputs, const std::vector<Shape>& projection_shapes, bool joined)
      : shapes(projection_shapes), x(tokens, inputs, 1, 3), dx(tokens, inputs, 2, 1) {
    for (const Shape& shape : shapes) {
      ranks += shape.rank;
    }
    hidden.emplace(tokens, ranks, 3, 2);
    dhidden.emplace(tokens, ranks, 4, 0);
    a.emplace_back(ranks, inputs, 5);
    da.emplace_back(ranks, inputs, 6);
    for (size_t i = 0; i < shapes.size(); ++i) {
      const Shape& shape = shapes[i];
      weight.emplace_back(shape.outputs, inputs, 10 + i, 1);
      bias.emplace_back(1, shape.outputs, 20 + i);
      b.emplace_back(shape.outputs, shape.rank, 30 + i, 2);
      db.emplace_back(shape.outputs, shape.rank, 40 + i);
      y.emplace_back(tokens, shape.outputs, 50 + i, 4);
      dy.emplace_back(tokens, shape.outputs, 60 + i, i);
      if (!joined) {
        a.emplace_back(shape.rank, inputs, 70 + i, 3);
        da.emplace_back(shape.rank, inputs, 80 + i);
      }
    }
    is_joined = joined;
  }

  Group(const Group&) = default;

  TensorView rows(const std::vector<TestMatrix<T>>& matrices, size_t i) const {
    if (!is_joined) {
      return matrices[i + 1].view;
    }
    int64_t first = 0;
    for (size_t j = 0; j < i; ++j) {
      first += shapes[j].rank;
    }
    return matrices[0].view.slice(0, first, shapes[i].rank);
  }

  std::vector<LoraProjection> projections() const {
    std::vector<LoraProjection> list;
    for (size_t i = 0; i < shapes.size(); ++i) {
      LoraProjection p = {.weight = weight[i].view, .scale = 0.5f + static_cast<float>(i)};
      if (shapes[i].bias) {
        p.bias = bias[i].view.select(0, 0);
      }
      if (shapes[i].rank > 0) {
        p.a = rows(a, i);
        p.b = b[i].view;
      }
      list.push_back(p);
    }
    return list;
  }

  std::vector<LoraGradients> gradients() const {
    std::vector<LoraGradients> list;
    for (size_t i = 0; i < shapes.size(); ++i) {
      list.push_back(shapes[i].rank > 0 ? LoraGradients{rows(da, i), db[i].view} : LoraGradients{});
    }
    return list;
  }

  std::vector<TensorView> y_views() const {
    std::vector<TensorView> list;
    for (const auto& matrix : y) {
      list.push_back(matrix.view);
    }
    return list;
  }

  std::vector<ConstTensorView> dy_views() const {
    std::vector<ConstTensorView> list;
    for (const auto& matrix : dy) {
      list.push_back(matrix.view);
    }
    return list;
  }

  void run(bool accumulate = false) {
    lora_linear_forward(y_views(), hidden->view, x.view, projections());
    lora_linear_backward(dx.view, gradients(), dhidden->view, dy_views(), x.view, hidden->view,
                         projections(), accumulate);
  }

  void run_reference(bool accumulate = false) {
    lora_linear_forward_reference(y_views(), hidden->view, x.view, projections());
    lora_linear_backward_reference(dx.view, gradients(), dhidden->view, dy_views(), x.view,
                                   hidden->view, projections(), accumulate);
  }

  // Every number that the op writes.
  std::vector<T> outputs() const {
    std::vector<T> all = dx.memory;
    const auto append = [&](const TestMatrix<T>& matrix) {
      all.insert(all.end(), matrix.memory.begin(), matrix.memory.end());
    };
    append(*hidden);
    for (const auto* list : {&y, &da, &db}) {
      for (const auto& matrix : *list) {
        append(matrix);
      }
    }
    return all;
  }

  std::vector<Shape> shapes;
  int64_t ranks = 0;
  bool is_joined = false;
  TestMatrix<T> x, dx;
  std::optional<TestMatrix<T>> hidden, dhidden;
  std::vector<TestMatrix<T>> a, da;  // [0]: joined; [1 + i]: apart
  std::vector<TestMatrix<T>> weight, bias, b, db, y, dy;
};

const std::vector<Shape> kQkv = {{40, 8, true}, {16, 8, true}, {16, 8, true}};
const std::vector<Shape> kMixed = {{33, 0, true}, {20, 5, false}, {67, 16, true}, {9, 0, false}};
const std::vector<Shape> kPlain = {{21, 0, true}, {30, 0, false}};

TEST(LoraLinear, EqualsTheReference) {
  for (const auto& shapes : {kQkv, kMixed, kPlain, std::vector<Shape>{{50, 16, false}}}) {
    for (const bool joined : {false, true}) {
      for (const bool accumulate : {false, true}) {
        Group<float> actual(37, 45, shapes, joined);
        Group<float> expected(actual);
        actual.run(accumulate);
        expected.run_reference(accumulate);
        const std::vector<float> a = actual.outputs();
        const std::vector<float> b = expected.outputs();
        // Entries below 1: the deepest chain is dA = (scale dy B)^T x, sums of 67 and 37 terms with
        // scale at most 2.5: values below 67 * 37 * 2.5, each within (67 + 37) roundings of that.
        const double bound = 0x1p-24 * 67 * 37 * 2.5 * (67 + 37);
        for (size_t i = 0; i < a.size(); ++i) {
          ASSERT_NEAR(a[i], b[i], bound) << i << " joined " << joined;
        }
      }
    }
  }
}

TEST(LoraLinear, JoinedAdaptersGiveTheSameSumsAsSeparateOnes) {
  Group<float> apart(37, 45, kQkv, false);
  Group<float> joined(37, 45, kQkv, true);
  for (size_t i = 0; i < kQkv.size(); ++i) {
    for (int64_t r = 0; r < kQkv[i].rank; ++r) {
      const float* from = apart.rows(apart.a, i).select(0, r).as<float>();
      std::copy_n(from, 45, joined.rows(joined.a, i).select(0, r).as<float>());
    }
  }
  apart.run();
  joined.run();
  for (size_t i = 0; i < apart.dx.memory.size(); ++i) {
    EXPECT_NEAR(apart.dx.memory[i], joined.dx.memory[i], 1e-3);
  }
  EXPECT_EQ(apart.hidden->memory.size(), joined.hidden->memory.size());
  for (size_t i = 0; i < apart.hidden->memory.size(); ++i) {
    EXPECT_NEAR(apart.hidden->memory[i], joined.hidden->memory[i], 45 * 45 * 0x1p-24);
  }
}

TEST(LoraLinear, JoinedAdaptersReadTheInputOnce) {
  const Group<float> joined(4, 45, kQkv, true);
  EXPECT_EQ(lora_linear_adapter_passes(joined.projections()), 1);
  EXPECT_EQ(lora_linear_adapter_passes(Group<float>(4, 45, kQkv, false).projections()), 3);
  EXPECT_EQ(lora_linear_adapter_passes(Group<float>(4, 45, kPlain, false).projections()), 0);
  // Projections without an adapter do not part those that have one.
  EXPECT_EQ(lora_linear_adapter_passes(Group<float>(4, 45, kMixed, true).projections()), 1);
  // Rows of one tensor with a gap between them are not one matrix.
  auto apart = joined.projections();
  apart[1].a = apart[1].a.slice(0, 1, 7);
  EXPECT_EQ(lora_linear_adapter_passes(apart), 2);
}

TEST(LoraLinear, AZeroBIsThePlainLinear) {
  Group<float> group(19, 30, kQkv, true);
  for (auto& matrix : group.b) {
    matrix.memory.assign(matrix.memory.size(), 0.0f);
  }
  group.run();
  for (size_t i = 0; i < kQkv.size(); ++i) {
    TestMatrix<> y(group.y[i]);
    linear_forward(y.view, group.x.view, group.weight[i].view, group.bias[i].view.select(0, 0));
    EXPECT_EQ(y.memory, group.y[i].memory);
  }
}

TEST(LoraLinear, GradientsOfTheReferenceAreFiniteDifferences) {
  const std::vector<Shape> shapes = {{4, 2, true}, {3, 0, false}, {5, 3, false}};
  Group<double> group(3, 4, shapes, true);
  const auto objective = [&] {
    Group<double> run(group);
    lora_linear_forward_reference(run.y_views(), run.hidden->view, group.x.view,
                                  group.projections());
    double sum = 0;
    for (size_t i = 0; i < shapes.size(); ++i) {
      sum += dot(run.y[i].view, group.dy[i].view);
    }
    return sum;
  };
  for (auto* list : {&group.da, &group.db}) {
    for (auto& matrix : *list) {
      matrix.memory.assign(matrix.memory.size(), 0.0);
    }
  }
  group.run_reference();
  const auto expect_gradient = [&](const TensorView& values, const TensorView& gradient) {
    for_each_index(values, [&](auto index) {
      // The objective is linear in each entry: any step is exact.
      const double expected = finite_difference(values, index, objective, 0.5);
      EXPECT_NEAR(load_element(gradient, index), expected, 1e-11);
    });
  };
  expect_gradient(group.x.view, group.dx.view);
  expect_gradient(group.a[0].view, group.da[0].view);
  expect_gradient(group.b[0].view, group.db[0].view);
  expect_gradient(group.b[2].view, group.db[2].view);
}

TEST(LoraLinear, GivesTheSameBitsForAnyNumberOfThreads) {
  const auto run = [](int threads) {
    Group<float> group(140, 210, {{250, 16, true}, {70, 16, false}, {70, 16, false}}, true);
    set_thread_count(threads);
    group.run();
    set_thread_count(0);
    return group.outputs();
  };
  const std::vector<float> one = run(1);
  for (const int threads : {2, 3, 5}) {
    EXPECT_EQ(run(threads), one) << threads;
  }
}

TEST(LoraLinear, TheInputGradientMayBeAbsent) {
  Group<float> with(20, 30, kQkv, true);
  Group<float> without(with);
  with.run();
  lora_linear_forward(without.y_views(), without.hidden->view, without.x.view,
                      without.projections());
  lora_linear_backward({}, without.gradients(), without.dhidden->view, without.dy_views(),
                       without.x.view, without.hidden->view, without.projections());
  EXPECT_EQ(with.da[0].memory, without.da[0].memory);
  EXPECT_EQ(with.db[1].memory, without.db[1].memory);
}

TEST(LoraLinear, RejectsBadArguments) {
  const Group<float> group(6, 10, kQkv, true);
  const auto forward = [&](std::vector<LoraProjection> projections) {
    lora_linear_forward(group.y_views(), group.hidden->view, group.x.view, projections);
  };
  EXPECT_NO_THROW(forward(group.projections()));
  EXPECT_THROW(forward({}), InvalidArgument);
  auto projections = group.projections();
  projections.pop_back();
  EXPECT_THROW(forward(projections), InvalidArgument);
  projections = group.projections();
  projections[1].b = {};
  EXPECT_THROW(forward(projections), InvalidArgument);
  projections = group.projections();
  projections[1].a = {};
  EXPECT_THROW(forward(projections), InvalidArgument);
  projections = group.projections();
  projections[0].bias = projections[1].bias;
  EXPECT_THROW(forward(projections), InvalidArgument);
  projections = group.projections();
  EXPECT_THROW(lora_linear_forward(group.y_views(), {}, group.x.view, projections),
               InvalidArgument);
  EXPECT_THROW(lora_linear_backward({}, {}, group.dhidden->view, group.dy_views(), group.x.view,
                                    group.hidden->view, projections),
               InvalidArgument);
  EXPECT_THROW(lora_linear_backward({}, group.gradients(), {}, group.dy_views(), group.x.view,
                                    group.hidden->view, projections),
               InvalidArgument);
  try {
    projections[2].a = projections[2].a.slice(1, 0, 9);
    forward(projections);
    FAIL() << "accepted a wrong shape";
  } catch (const InvalidArgument& error) {
    EXPECT_STREQ(error.what(),
                 "lora_linear_forward: projections[2].a: expected shape (any, 10), got (8, 9) f32");
  }
}

}  // namespace
}  // namespace flashloom
