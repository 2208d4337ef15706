#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <utility>

#include "flashloom/ops/attention/sm90/forward_band_test_case.cuh"

// The Hopper forward kernel for narrow bands holds the law on every border of the calls it takes.

namespace flashloom {
namespace {

using attention_test::BandCases;
using attention_test::BandExecutor;
using attention_test::Case;
using attention_test::ContractCase;
using attention_test::ForwardBand;
using attention_test::fresh_seed;
using attention_test::Layout;
using attention_test::Tensor;
using attention_test::widen;

constexpr int64_t kLengths[] = {1, 2, 63, 64, 65, 127, 128, 129, 191, 192, 193, 700};

TEST_F(ForwardBand, EveryLengthHoldsTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  BandCases cases(fresh_seed());
  for (const int64_t rows : kLengths) {
    for (const DType dtype : {DType::bf16, DType::f16}) {
      cases.add(rows, {64, 64}, dtype);
      cases.add(rows, {128, 0}, dtype).key_heads = 4;
      cases.add(rows, {0, 128}, dtype).key_heads = 1;
      widen(cases.add(rows, {64, 64}, dtype), 128);
    }
  }
  cases.expect_law();
}

TEST_F(ForwardBand, EveryWindowHoldsTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  BandCases cases(fresh_seed());
  for (const int64_t left : {0, 1, 7, 31, 32, 33, 63, 64}) {
    for (const int64_t right : {0, 1, 8, 32, 63, 64}) {
      cases.add(200, {left, right});
    }
  }
  for (int i = 0; i < 32; ++i) {
    const int64_t left = cases.below(129);
    cases.add(1 + cases.below(400), {left, left <= 64 ? cases.below(65) : 0});
    widen(cases.add(1 + cases.below(300), {left, left <= 64 ? cases.below(65) : 0}), 96);
  }
  cases.expect_law();
}

// Rows that see nothing before, behind and in the middle of their keys; more queries than keys and
// fewer.
TEST_F(ForwardBand, EveryOffsetHoldsTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  BandCases cases(fresh_seed());
  for (int i = 0; i < 48; ++i) {
    Case& call = cases.add(1 + cases.below(500), {63, 63});
    call.keys = 1 + cases.below(500);
    // What tile 0 of queries sees must not reach into a fourth tile of keys.
    const int64_t offset = 64 * (cases.below(13) - 6) + cases.below(3) - 1;
    call.options.visibility = {64 - (offset % 64 == 0 ? 0 : 1), 63};
    if (i % 3 == 0) {
      call.options.positions.query_start = 5000 + offset;
      call.options.positions.key_start = 5000;
    } else {
      call.options.positions.offset = offset;
    }
  }
  // The default offset: the last query stands beside the last key.
  cases.add(130, {64, 64}).keys = 130 + 64;
  cases.add(300, {64, 64}).keys = 300 - 128;
  cases.expect_law();
}

TEST_F(ForwardBand, WidthsScalesAndSinksHoldTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  BandCases cases(fresh_seed());
  Tensor sinks(DType::f32, {4});
  sinks.random(cases.random.below(1000), 2);
  const std::pair<int64_t, int64_t> widths[] = {{8, 8},   {40, 40}, {64, 24},  {16, 64},
                                                {56, 48}, {72, 72}, {128, 64}, {40, 112}};
  for (const auto& [dim, value_dim] : widths) {
    for (const int64_t rows : {65, 300}) {
      Case& call = cases.add(rows, {64, 64}, rows == 65 ? DType::f16 : DType::bf16);
      call.dim = dim;
      call.value_dim = value_dim;
      call.options.score.scale = dim == 40 ? 0.3f : 0;
      if (dim != 64) {
        call.options.score.sinks = sinks;
      }
    }
  }
  cases.add(200, {128, 0}).options.score.sinks = sinks;
  cases.add(200, {100, 0}).deviation = 8;  // logits of some hundreds
  cases.expect_law();
}

TEST_F(ForwardBand, AnyStridesHoldTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  BandCases cases(fresh_seed());
  for (const bool packed : {false, true}) {
    Case& call = cases.add(333, {64, 64});
    call.heads = call.key_heads = 3;
    if (packed) {
      call.batch = 1;
      call.packed_queries = call.packed_keys = {0, 100, 333};
    }
  }
  cases.expect_law(BandExecutor(Layout::rows_first));
}

// Heads and rows such that blocks take many segments and rings go round many times; more heads than
// multiprocessors, too, where blocks take parts of several heads.
TEST_F(ForwardBand, LongCallsHoldTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  BandCases cases(fresh_seed());
  const auto shape = [&](int64_t batch, int64_t heads, int64_t key_heads, int64_t rows) {
    Case& call = cases.add(rows, {64, 64});
    call.batch = batch;
    call.heads = heads;
    call.key_heads = key_heads;
  };
  shape(3, 12, 12, 1500);
  shape(1, 3, 1, 20000);
  shape(30, 8, 2, 90);
  shape(2, 150, 150, 130);
  shape(5, 100, 50, 65);
  for (size_t i = 0; i < 3; ++i) {
    ContractCase wide = cases.all[i];
    widen(wide.call, 128);
    cases.all.push_back(wide);
  }
  cases.expect_law();
}

}  // namespace
}  // namespace flashloom
