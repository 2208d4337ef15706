#include "flashloom/ops/linear/gemm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/ops/linear/test_matrix.h"

namespace flashloom {
namespace {

struct Product {
  Product(int64_t m, int64_t n, int64_t k, const GemmOptions& gemm_options, int64_t gap = 0)
      : options(gemm_options),
        a(options.transpose_a ? k : m, options.transpose_a ? m : k, 1, gap),
        b(options.transpose_b ? n : k, options.transpose_b ? k : n, 2, gap * 2),
        c(m, n, 3, gap * 3),
        depth(k) {}

  std::vector<float> result(int threads = 2) const {
    TestMatrix<> out(c);
    set_thread_count(threads);
    gemm(out.view, a.view, b.view, options);
    set_thread_count(0);
    return out.memory;
  }

  // |entries| <= 1: a float sum of `depth` products is off by at most depth u per term (Higham,
  // section 3.1), the final scaling by a few roundings more. Gaps between rows must not change.
  void expect_matches() const {
    const std::vector<float> actual = result();
    TestMatrix<> expected(c);
    gemm_reference(expected.view, a.view, b.view, options);
    const double k = static_cast<double>(depth);
    const double bound = 0x1p-24 * (std::fabs(options.alpha) * k * (k + 2) +
                                    2 * (std::fabs(options.alpha) * k + std::fabs(options.beta)));
    for (size_t i = 0; i < actual.size(); ++i) {
      ASSERT_NEAR(actual[i], expected.memory[i], bound) << "element " << i;
    }
    for (int64_t i = 0; i < c.view.dim(0); ++i) {
      for (int64_t j = c.view.dim(1); j < c.view.stride(0); ++j) {
        const auto gap = static_cast<size_t>(i * c.view.stride(0) + j);
        ASSERT_EQ(actual[gap], c.memory[gap]);
      }
    }
  }

  GemmOptions options;
  TestMatrix<> a;
  TestMatrix<> b;
  TestMatrix<> c;
  int64_t depth;
};

TEST(Gemm, MultipliesABf16BAsIfItWereF32) {
  for (const bool ta : {false, true}) {
    for (const bool tb : {false, true}) {
      for (const auto [m, n, k] : {std::array<int64_t, 3>{1, 7, 3},
                                   {5, 9, 33},
                                   {13, 31, 1},
                                   {64, 16, 130},
                                   {129, 193, 37},
                                   {257, 65, 700},
                                   {20, 1550, 31}}) {
        const TestMatrix<> a(ta ? k : m, ta ? m : k, 1, 3);
        const TestMatrix<bf16> half(tb ? n : k, tb ? k : n, 2, 6);
        TestMatrix<> b(tb ? n : k, tb ? k : n, 2, 6);
        for (size_t i = 0; i < b.memory.size(); ++i) {
          b.memory[i] = static_cast<float>(half.memory[i]);
        }
        const TestMatrix<> expected(m, n, 3, 9);
        const TestMatrix<> actual(expected);
        const GemmOptions options = {
            .transpose_a = ta, .transpose_b = tb, .alpha = 0.5, .beta = 0.25};
        gemm(expected.view, a.view, b.view, options);
        gemm(actual.view, a.view, half.view, options);
        EXPECT_EQ(actual.memory, expected.memory) << m << " " << n << " " << k << " " << ta << tb;
      }
    }
  }
  const TestMatrix<bf16> half(4, 4, 1);
  const TestMatrix<> x(4, 4, 2);
  EXPECT_THROW(gemm(x.view, half.view, x.view), InvalidArgument);
  EXPECT_THROW(gemm(half.view, x.view, x.view), InvalidArgument);
}

TEST(Gemm, EqualsTheReferenceForOddSizesAndStridedRows) {
  for (const bool ta : {false, true}) {
    for (const bool tb : {false, true}) {
      const GemmOptions options = {.transpose_a = ta, .transpose_b = tb};
      for (const int64_t gap : {0, 5}) {
        for (const auto [m, n, k] : {std::array<int64_t, 3>{1, 1, 1},
                                     {1, 7, 3},
                                     {5, 1, 9},
                                     {7, 16, 33},
                                     {6, 17, 64},
                                     {13, 31, 1},
                                     {129, 193, 37},
                                     {64, 16, 130},
                                     {16, 300, 20},
                                     {257, 65, 300},
                                     {8, 70, 65},
                                     {9, 70, 65},
                                     {530, 17, 330},
                                     {20, 1550, 31}}) {
          SCOPED_TRACE(testing::Message() << m << " " << n << " " << k << " " << ta << tb << gap);
          Product(m, n, k, options, gap).expect_matches();
        }
      }
    }
  }
}

TEST(Gemm, ScalesAndAdds) {
  for (const float alpha : {1.0f, -0.5f, 0.0f}) {
    for (const float beta : {0.0f, 1.0f, 0.25f}) {
      SCOPED_TRACE(testing::Message() << alpha << " " << beta);
      Product(70, 210, 50, {.alpha = alpha, .beta = beta}, 3).expect_matches();
      Product(70, 210, 50, {.transpose_b = true, .alpha = alpha, .beta = beta}).expect_matches();
      Product(70, 9, 500, {.transpose_a = true, .alpha = alpha, .beta = beta}).expect_matches();
    }
  }
}

TEST(Gemm, DoesNotReadCWhenBetaIsZero) {
  for (const int64_t k : {0, 1, 40}) {
    Product product(35, 50, k, {});
    product.c.memory.assign(product.c.memory.size(), std::numeric_limits<float>::quiet_NaN());
    const std::vector<float> actual = product.result();
    for (size_t i = 0; i < 35 * 50; ++i) {
      ASSERT_TRUE(std::isfinite(actual[i])) << k;
    }
  }
}

TEST(Gemm, AnEmptyDepthLeavesBetaTimesC) {
  Product product(3, 5, 0, {.beta = 0.5f});
  const std::vector<float> actual = product.result();
  for (size_t i = 0; i < 15; ++i) {
    EXPECT_EQ(actual[i], 0.5f * product.c.memory[i]);
  }
}

TEST(Gemm, EmptyMatricesAreLegal) {
  Product(0, 5, 4, {}).expect_matches();
  Product(5, 0, 4, {}).expect_matches();
  Product(0, 0, 0, {.transpose_a = true, .transpose_b = true}).expect_matches();
}

TEST(Gemm, GivesTheSameBitsForAnyNumberOfThreads) {
  for (const auto [m, n, k] : {std::array<int64_t, 3>{100, 100, 2000},
                               {128, 576, 576},
                               {300, 16, 576},
                               {16, 576, 300},
                               {515, 389, 65}}) {
    for (const bool ta : {false, true}) {
      for (const bool tb : {false, true}) {
        const Product product(m, n, k, {.transpose_a = ta, .transpose_b = tb});
        const std::vector<float> one = product.result(1);
        for (const int threads : {2, 3, 5}) {
          ASSERT_EQ(one, product.result(threads)) << m << " " << n << " " << k << " " << threads;
        }
      }
    }
  }
}

TEST(Gemm, GivesTheSameBitsInsideAParallelLoop) {
  const Product product(150, 210, 700, {.transpose_b = true});
  const std::vector<float> outside = product.result(1);
  set_thread_count(2);
  std::vector<TestMatrix<>> inside(4, product.c);
  parallel_for(4, [&](int64_t i) {
    gemm(inside[static_cast<size_t>(i)].view, product.a.view, product.b.view, product.options);
  });
  EXPECT_EQ(thread_count(), 2);
  set_thread_count(0);
  for (const TestMatrix<>& matrix : inside) {
    EXPECT_EQ(matrix.memory, outside);
  }
}

TEST(Gemm, LeavesTheNumberOfThreadsAlone) {
  const Product product(10, 10, 10, {});
  set_thread_count(3);
  TestMatrix<> out(product.c);
  gemm(out.view, product.a.view, product.b.view);
  EXPECT_EQ(thread_count(), 3);
  set_thread_count(0);
}

struct Sum {
  // A large product, an adapter of small depth, one of another layout, one of no depth.
  Sum(int64_t m, int64_t n, int64_t k)
      : a{{m, k, 1, 2}, {m, 5, 2, 1}, {17, m, 3, 3}, {m, 0, 4}},
        b{{n, k, 5}, {n, 5, 6, 4}, {17, n, 7}, {n, 0, 8}},
        bias(1, n, 9),
        c(m, n, 10, 2),
        terms{{.a = a[0].view, .b = b[0].view, .transpose_b = true},
              {.a = a[1].view, .b = b[1].view, .transpose_b = true, .alpha = 0.5f},
              {.a = a[2].view, .b = b[2].view, .transpose_a = true, .alpha = -2},
              {.a = a[3].view, .b = b[3].view, .transpose_b = true}} {}

  std::vector<TestMatrix<>> a, b;
  TestMatrix<> bias, c;
  std::vector<GemmTerm> terms;
};

TEST(Gemm, SumsOfProductsEqualTheReference) {
  for (const auto [m, n, k] : {std::array<int64_t, 3>{1, 70, 40}, {7, 9, 33}, {130, 210, 700}}) {
    for (const size_t count : {size_t{0}, size_t{1}, size_t{2}, size_t{4}}) {
      for (const float beta : {0.0f, 0.5f}) {
        for (const bool with_bias : {false, true}) {
          if (with_bias && beta != 0) {
            continue;
          }
          SCOPED_TRACE(testing::Message() << m << " " << count << " " << beta << with_bias);
          const Sum sum(m, n, k);
          const ConstTensorView bias =
              with_bias ? ConstTensorView(sum.bias.view.select(0, 0)) : ConstTensorView();
          const auto terms = std::span(sum.terms).first(count);
          TestMatrix<> actual(sum.c);
          TestMatrix<> expected(sum.c);
          gemm_sum(actual.view, terms, beta, bias);
          gemm_sum_reference(expected.view, terms, beta, bias);
          // k + 5 + 17 products, the last of them doubled.
          const double bound = 0x1p-24 * std::pow(static_cast<double>(k) + 5 + 2 * 17 + 4, 2);
          for (size_t i = 0; i < actual.memory.size(); ++i) {
            ASSERT_NEAR(actual.memory[i], expected.memory[i], bound) << i;
          }
        }
      }
    }
  }
}

TEST(Gemm, ABiasAndABetaExcludeEachOther) {
  const Sum sum(3, 4, 5);
  TestMatrix<> c(sum.c);
  EXPECT_THROW(gemm_sum(c.view, sum.terms, 1, sum.bias.view.select(0, 0)), InvalidArgument);
  EXPECT_THROW(gemm_sum(c.view, sum.terms, 0, sum.bias.view.select(0, 0).slice(0, 0, 3)),
               InvalidArgument);
}

TEST(Gemm, RejectsBadArguments) {
  const Product product(4, 6, 5, {});
  TestMatrix<> c(product.c);
  EXPECT_THROW(gemm(c.view, product.b.view, product.a.view), InvalidArgument);
  EXPECT_THROW(gemm(c.view, product.a.view, product.b.view, {.transpose_a = true}),
               InvalidArgument);
  EXPECT_THROW(gemm(c.view, product.a.view, product.b.view, {.transpose_b = true}),
               InvalidArgument);
  EXPECT_THROW(gemm(c.view, product.a.view.select(0, 1), product.b.view), InvalidArgument);
  EXPECT_THROW(gemm(c.view, {}, product.b.view), InvalidArgument);
  EXPECT_THROW(gemm(c.view.transpose(0, 1), product.b.view, product.a.view,
                    {.transpose_a = true, .transpose_b = true}),
               InvalidArgument);
  TensorView overlapping = product.a.view;
  overlapping.strides[0] = 2;
  EXPECT_THROW(gemm(c.view, overlapping, product.b.view), InvalidArgument);
  TensorView halves = product.a.view;
  halves.dtype = DType::bf16;
  EXPECT_THROW(gemm(c.view, halves, product.b.view), InvalidArgument);
  try {
    gemm(c.view, product.a.view, product.b.view.slice(0, 0, 3));
    FAIL() << "accepted a wrong shape";
  } catch (const InvalidArgument& error) {
    EXPECT_STREQ(error.what(), "gemm: b: expected shape (5, 6), got (3, 6) f32");
  }
}

}  // namespace
}  // namespace flashloom
