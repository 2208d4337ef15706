#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/tensor_for_test.h"
#include "flashloom/ops/embedding/embedding_reference.h"

namespace flashloom {
namespace {

OwnedTensor random_tokens(int64_t count, uint32_t vocabulary) {
  RandomSequence random(1, RandomStream::test);
  OwnedTensor tokens(DType::i32, {count});
  for (int64_t t = 0; t < count; ++t) {
    tokens.set({t}, random.below(vocabulary));
  }
  return tokens;
}

class EmbeddingDType : public testing::TestWithParam<std::tuple<DType, DType>> {};

TEST_P(EmbeddingDType, ForwardIsTheRowOfTheTable) {
  const auto [out_dtype, table_dtype] = GetParam();
  for (const int64_t columns : {1, 7, 576}) {
    const OwnedTensor table = normal_tensor(table_dtype, {50, columns}, 2, 1, 0, 3);
    const OwnedTensor tokens = random_tokens(83, 50);
    const OwnedTensor out(out_dtype, {83, columns}, 2);
    const OwnedTensor exact(out_dtype, {83, columns});
    embedding_forward(out, table, tokens);
    embedding_forward_reference(exact, table, tokens);
    EXPECT_EQ(max_error(out, exact), 0) << columns;
  }
}

INSTANTIATE_TEST_SUITE_P(, EmbeddingDType,
                         testing::Values(std::tuple(DType::f32, DType::f32),
                                         std::tuple(DType::bf16, DType::bf16),
                                         std::tuple(DType::f32, DType::bf16),
                                         std::tuple(DType::bf16, DType::f32)));

TEST(Embedding, BackwardAddsRowsOfEqualTokensInOrder) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const int64_t columns : {1, 7, 128, 300}) {
      const OwnedTensor dtable = normal_tensor(DType::f32, {9, columns}, 1, 1, 0, 3);
      const OwnedTensor tokens = random_tokens(200, 9);
      const OwnedTensor dout = normal_tensor(dtype, {200, columns}, 2, 1, 0, 5);
      // The same additions in the same order, rounded to f32 after each: every bit is fixed.
      const OwnedTensor expected = to_dtype(dtable, DType::f32);
      embedding_backward_reference(expected, dout, tokens);
      const OwnedTensor exact = to_dtype(dtable, DType::f64);
      embedding_backward_reference(exact, dout, tokens);
      embedding_backward(dtable, dout, tokens);
      EXPECT_EQ(max_error(dtable, expected), 0) << columns;
      // At most 40 of 200 tokens fall on one of 9 ids here; sums stay below 32.
      EXPECT_LE(max_error(dtable, exact), 40 * 32 * 0x1p-24) << columns;
    }
  }
}

TEST(Embedding, GivesTheSameBitsForAnyNumberOfThreads) {
  const OwnedTensor tokens = random_tokens(500, 20);
  const OwnedTensor dout = normal_tensor(DType::f32, {500, 333}, 2);
  OwnedTensor results[2];
  for (int run = 0; run < 2; ++run) {
    set_thread_count(run == 0 ? 1 : 5);
    results[run] = OwnedTensor(DType::f32, {20, 333});
    embedding_backward(results[run], dout, tokens);
  }
  set_thread_count(0);
  EXPECT_TRUE(same_bits(results[0], results[1]));
}

TEST(Embedding, ReferenceGradientEqualsFiniteDifferences) {
  const OwnedTensor table = normal_tensor(DType::f64, {4, 3}, 1);
  const OwnedTensor tokens = random_tokens(6, 4);
  const OwnedTensor dout = normal_tensor(DType::f64, {6, 3}, 2);
  const OwnedTensor out(DType::f64, {6, 3});
  const OwnedTensor dtable(DType::f64, {4, 3});
  embedding_backward_reference(dtable, dout, tokens);
  const auto value = [&] {
    embedding_forward_reference(out, table, tokens);
    return dot(out, dout);
  };
  for_each_index(table.view(), [&](auto index) {
    EXPECT_NEAR(load_element(dtable, index), finite_difference(table, index, value), 1e-8);
  });
}

TEST(Embedding, RejectsATokenOutsideTheTableAndNamesItsPlace) {
  const OwnedTensor table = normal_tensor(DType::f32, {10, 4}, 1);
  OwnedTensor out(DType::f32, {3, 4});
  out.fill(7);
  const OwnedTensor before = out;
  OwnedTensor tokens(DType::i32, {3});
  for (const double bad : {-1.0, 10.0}) {
    tokens.set({2}, bad);
    try {
      embedding_forward(out, table, tokens);
      FAIL();
    } catch (const InvalidArgument& error) {
      EXPECT_EQ(error.what(), "embedding_forward: tokens[2]: expected a token in [0, 10), got " +
                                  std::to_string(static_cast<int>(bad)));
    }
    EXPECT_THROW(embedding_backward(table, out, tokens), InvalidArgument);
  }
  EXPECT_TRUE(same_bits(out, before));
}

TEST(Embedding, RejectsBadArguments) {
  const OwnedTensor table(DType::f32, {10, 4});
  const OwnedTensor half_table(DType::bf16, {10, 4});
  const OwnedTensor out(DType::f32, {3, 4});
  const OwnedTensor wide(DType::f32, {3, 5});
  const OwnedTensor tokens(DType::i32, {3});
  const OwnedTensor many(DType::i32, {4});
  const OwnedTensor floats(DType::f32, {3});
  EXPECT_THROW(embedding_forward(wide, table, tokens), InvalidArgument);
  EXPECT_THROW(embedding_forward(out, table, many), InvalidArgument);
  EXPECT_THROW(embedding_forward(out, table, floats), InvalidArgument);
  EXPECT_THROW(embedding_forward(out, {}, tokens), InvalidArgument);
  EXPECT_THROW(embedding_forward({}, table, tokens), InvalidArgument);
  EXPECT_THROW(embedding_backward(half_table, out, tokens), InvalidArgument);
  EXPECT_THROW(embedding_backward(table, wide, tokens), InvalidArgument);
}

}  // namespace
}  // namespace flashloom
