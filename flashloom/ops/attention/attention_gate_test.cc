#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/attention_test_case.h"
#include "flashloom/ops/attention/random_blocks_for_test.h"

// The gate of the CPU kernel: the same tiles as the reference keeps, exact attention over them.

namespace flashloom {
namespace {

using attention_test::distance;
using attention_test::forward;
using attention_test::RandomBlocks;
using attention_test::Tensor;
using attention_test::with_backend;

// A call whose tiles' largest scores scatter around the threshold.
struct GateCase {
  int64_t batch = 2, heads = 4, key_heads = 2, queries = 200, keys = 300;
  int64_t rows = 40, block_keys = 24;
  AttentionGate::Kind kind = AttentionGate::Kind::absolute;
  double threshold = 3.3;
  DType dtype = DType::f32;
  AttentionOptions options = {};
  bool with_entropy = false;

  struct Results {
    Tensor out, lse, entropy, kept, dropped;
  };

  Results run(AttentionBackend backend) const {
    const Tensor q = std::move(Tensor(dtype, {batch, heads, queries, 16}).random(1));
    const Tensor k = std::move(Tensor(dtype, {batch, key_heads, keys, 16}).random(2));
    const Tensor v = std::move(Tensor(dtype, {batch, key_heads, keys, 20}).random(3));
    // Two blocks of rows of their own, the second of which repeats.
    Tensor thresholds(DType::f32, {heads, 2});
    for (int64_t h = 0; h < heads; ++h) {
      thresholds.set(2 * h, threshold + 0.1 * static_cast<double>(h));
      thresholds.set(2 * h + 1, threshold);
    }
    Results results;
    results.out = Tensor(DType::f32, {batch, heads, queries, 20});
    results.lse = Tensor(DType::f32, {batch, heads, queries});
    results.entropy = Tensor(DType::f32, {batch, heads, queries});
    results.kept = Tensor(DType::i32, {batch, heads, tile_count(queries, rows),
                                       tile_count(tile_count(keys, block_keys), 32)});
    results.dropped = Tensor(DType::f32, {batch, heads, queries});
    AttentionOptions call = with_backend(options, backend);
    call.gate = {.kind = kind,
                 .threshold = thresholds,
                 .rows = rows,
                 .keys = block_keys,
                 .kept = results.kept,
                 .dropped_mass = results.dropped};
    AttentionOutputs outputs = {.out = results.out, .lse = results.lse};
    if (with_entropy) {
      outputs.entropy = results.entropy;
    }
    forward(outputs, {q, k, v}, call);
    return results;
  }

  // Returns the share of tiles that were kept.
  double expect_equal_to_reference() const {
    const Results ours = run(AttentionBackend::cpu);
    const Results reference = run(AttentionBackend::reference);
    EXPECT_TRUE(ours.kept.same_bits(reference.kept));
    EXPECT_LE(distance(ours.out, reference.out), 4e-6);
    EXPECT_LE(distance(ours.lse, reference.lse), 4e-6);
    EXPECT_LE(distance(ours.dropped, reference.dropped), 4e-6);
    if (with_entropy) {
      EXPECT_LE(distance(ours.entropy, reference.entropy), 1e-5);
    }
    int64_t count = 0;
    for (int64_t i = 0; i < ours.kept.size(); ++i) {
      count += std::popcount(static_cast<uint32_t>(ours.kept.view().as<int32_t>()[i]));
    }
    return static_cast<double>(count) /
           static_cast<double>(batch * heads * tile_count(queries, rows) *
                               tile_count(keys, block_keys));
  }
};

TEST(AttentionGate, KeepsTheTilesThatTheReferenceKeeps) {
  for (const int64_t right : {-1, 0}) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      SCOPED_TRACE(right);
      GateCase call = {.dtype = dtype, .with_entropy = true};
      call.options.visibility.right = right;
      const double kept = call.expect_equal_to_reference();
      EXPECT_GT(kept, 0.1);
      EXPECT_LT(kept, 0.8);
    }
  }
}

TEST(AttentionGate, RelativeToTheRunningMaximum) {
  // A query of 40 rows keeps a tile unless every row lies 0.1 below its maximum so far.
  GateCase call = {
      .queries = 60, .rows = 4, .kind = AttentionGate::Kind::relative, .threshold = 0.1};
  const double kept = call.expect_equal_to_reference();
  EXPECT_GT(kept, 0.1);
  EXPECT_LT(kept, 0.95);
}

TEST(AttentionGate, WithScoresSinksAndBlocks) {
  const Tensor sinks = std::move(Tensor(DType::f32, {4}).random(6));
  const Tensor bias = std::move(Tensor(DType::f32, {1, 4, 200, 300}).random(7, 0.3));
  const RandomBlocks blocks(200, 300, 80, 48, 4, 9);
  GateCase call;
  call.options.score = {.softcap = 5, .bias = bias, .sinks = sinks};
  call.options.blocks = blocks.blocks;
  call.expect_equal_to_reference();
}

TEST(AttentionGate, AnOpenGateChangesNothing) {
  GateCase call = {.threshold = -1e9};
  const GateCase::Results open = call.run(AttentionBackend::cpu);
  EXPECT_EQ(call.expect_equal_to_reference(), 1);
  for (int64_t i = 0; i < open.dropped.size(); ++i) {
    ASSERT_EQ(open.dropped.get(i), 0);
  }
}

TEST(AttentionGate, AClosedGateLeavesRowsThatSeeNothing) {
  // Only whole tiles close: 3 of 5 blocks of 64 rows, 4 of 5 blocks of 64 keys.
  GateCase call = {.queries = 192, .keys = 256, .rows = 64, .block_keys = 64, .threshold = 1e9};
  const GateCase::Results closed = call.run(AttentionBackend::cpu);
  EXPECT_EQ(call.expect_equal_to_reference(), 0);
  EXPECT_EQ(closed.out.get(5), 0);
  EXPECT_EQ(closed.lse.get(5), -std::numeric_limits<double>::infinity());
  EXPECT_EQ(closed.dropped.get(5), 1);
}

TEST(AttentionGate, TheLostMassIsBounded) {
  GateCase call;
  const GateCase::Results gated = call.run(AttentionBackend::cpu);
  GateCase open = {.threshold = -1e9};
  const GateCase::Results whole = open.run(AttentionBackend::cpu);
  for (int64_t i = 0; i < gated.lse.size(); ++i) {
    const double lost = gated.lse.get(i) == -std::numeric_limits<double>::infinity()
                            ? 1
                            : 1 - std::exp(gated.lse.get(i) - whole.lse.get(i));
    ASSERT_GE(gated.dropped.get(i) + 1e-5, lost) << i;
  }
}

TEST(AttentionGate, BitsDoNotDependOnThreads) {
  const GateCase call;
  set_thread_count(1);
  const GateCase::Results one = call.run(AttentionBackend::cpu);
  set_thread_count(5);
  const GateCase::Results many = call.run(AttentionBackend::cpu);
  set_thread_count(0);
  EXPECT_TRUE(one.out.same_bits(many.out));
  EXPECT_TRUE(one.kept.same_bits(many.kept));
  EXPECT_TRUE(one.dropped.same_bits(many.dropped));
}

}  // namespace
}  // namespace flashloom
