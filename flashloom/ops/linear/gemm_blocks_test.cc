#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/ops/linear/gemm.h"
#include "flashloom/ops/linear/test_blocks.h"
#include "flashloom/ops/linear/test_matrix.h"

namespace flashloom {
namespace {

struct Case {
  int64_t m, rows, columns;  // of c; of the stored matrix
  const BlockFormat* format;
};

// Depths and columns around the tiles' sizes (blocks of 320 deep, tiles of 192 columns).
std::vector<Case> cases() {
  const BlockFormat& small = test_block_format<32, 32>();
  const BlockFormat& grouped = test_block_format<256, 32>();
  const BlockFormat& coarse = test_block_format<64, 64>();
  return {{9, 33, 64, &small},      {40, 7, 32, &small},      {100, 250, 576, &small},
          {21, 200, 1536, &small},  {13, 100, 256, &grouped}, {130, 97, 768, &grouped},
          {50, 331, 512, &grouped}, {12, 40, 192, &coarse},   {97, 210, 640, &coarse}};
}

TEST(GemmBlocks, GivesTheBitsOfTheDecodedMatrix) {
  for (const Case& c : cases()) {
    const TestBlocks blocks(c.rows, c.columns, 1, *c.format);
    const std::vector<float> decoded = decoded_matrix(blocks.view);
    const ConstTensorView plain(decoded.data(), {c.rows, c.columns});
    for (const bool transposed : {true, false}) {
      const int64_t depth = transposed ? c.columns : c.rows;
      const int64_t n = transposed ? c.rows : c.columns;
      const TestMatrix<> a(c.m, depth, 2, 3);
      TestMatrix<> expected(c.m, n, 3, 1);
      TestMatrix<> actual(expected);
      GemmTerm term = {.a = a.view, .b = plain, .transpose_b = transposed, .alpha = 0.5f};
      gemm_sum(expected.view, {&term, 1}, 0.25f);
      term.b = {};
      term.b_blocks = blocks.view;
      gemm_sum(actual.view, {&term, 1}, 0.25f);
      EXPECT_EQ(actual.memory, expected.memory)
          << c.m << " " << c.rows << " " << c.columns << " transposed " << transposed;
    }
  }
}

TEST(GemmBlocks, EqualsTheReferenceForFewRowsToo) {
  for (const int64_t m : {1, 3, 8, 30}) {
    for (const bool transposed : {true, false}) {
      const TestBlocks blocks(70, 96, 4, test_block_format<32, 32>());
      const TestMatrix<> a(m, transposed ? 96 : 70, 5);
      const TestMatrix<> other_a(m, 5, 6);
      const TestMatrix<> other_b(5, transposed ? 70 : 96, 7);
      const std::vector<GemmTerm> terms = {
          {.a = a.view, .transpose_b = transposed, .b_blocks = blocks.view},
          {.a = other_a.view, .b = other_b.view}};
      TestMatrix<> actual(m, transposed ? 70 : 96, 8);
      TestMatrix<> expected(actual);
      gemm_sum(actual.view, terms);
      gemm_sum_reference(expected.view, terms);
      for (size_t i = 0; i < actual.memory.size(); ++i) {
        // Sums of at most 101 products below 1.
        ASSERT_NEAR(actual.memory[i], expected.memory[i], 101 * 101 * 0x1p-24) << m;
      }
    }
  }
}

TEST(GemmBlocks, GivesTheSameBitsForAnyNumberOfThreads) {
  const TestBlocks blocks(300, 512, 9, test_block_format<256, 32>());
  const TestMatrix<> a(200, 512, 10);
  std::vector<float> first;
  for (const int threads : {1, 2, 3}) {
    TestMatrix<> c(200, 300, 11);
    set_thread_count(threads);
    const GemmTerm term = {.a = a.view, .transpose_b = true, .b_blocks = blocks.view};
    gemm_sum(c.view, {&term, 1});
    set_thread_count(0);
    if (first.empty()) {
      first = c.memory;
    }
    EXPECT_EQ(c.memory, first) << threads;
  }
}

TEST(GemmBlocks, SaysWhatItExpects) {
  const TestBlocks blocks(40, 64, 12, test_block_format<32, 32>());
  const TestMatrix<> a(10, 64, 13);
  TestMatrix<> c(10, 40, 14);
  const auto message = [&](const GemmTerm& term) -> std::string {
    try {
      gemm_sum(c.view, {&term, 1});
    } catch (const InvalidArgument& error) {
      return error.what();
    }
    return "accepted";
  };
  EXPECT_EQ(message({.a = a.view, .transpose_b = true, .b_blocks = blocks.view}), "accepted");
  EXPECT_EQ(message({.a = a.view, .b_blocks = blocks.view}),
            "gemm: b_blocks: expected (64, 40), got (40, 64)");
  BlockMatrix odd = blocks.view;
  odd.format = &test_block_format<48, 16>();
  EXPECT_EQ(message({.a = a.view, .transpose_b = true, .b_blocks = odd}),
            "gemm: b_blocks: expected rows of whole blocks of 48, got rows of 64");
  odd.format = &test_block_format<128, 128>();
  EXPECT_EQ(
      message({.a = a.view, .transpose_b = true, .b_blocks = odd}),
      "gemm: b_blocks: expected a format with groups of 1 to 64, got test with groups of 128");
}

}  // namespace
}  // namespace flashloom
