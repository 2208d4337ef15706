#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/attention_test_case.h"
#include "flashloom/ops/attention/attention_test_targets.h"
#include "flashloom/ops/attention/cpu/attention_cpu.h"
#include "flashloom/ops/attention/random_blocks_for_test.h"

// Random calls of the contract, many options at a time: the CPU kernels against the float64
// reference, and the same bits from another number of threads.

namespace flashloom {
namespace {

using attention_test::Case;
using attention_test::for_each_target;
using attention_test::RandomBlocks;
using attention_test::Results;
using attention_test::Tensor;

// A call and the tensors that its options point to.
struct RandomCall {
  Case call;
  Tensor sinks, slopes, bias, used_query, used_key, query, key;
  RandomBlocks blocks{1, 1, 8, 8, 1, 1};
  uint64_t dropout_seed = 0;
  std::string words;

  explicit RandomCall(uint64_t seed) : random_(seed, RandomStream::test) {
    call.key_heads = 1 + below(3);
    call.heads = call.key_heads * (1 + below(3));
    call.batch = 1 + below(2);
    call.queries = chance(3) ? 1 + below(4) : 1 + below(260);
    call.keys = chance(3) ? call.queries : 1 + below(300);
    call.dim = 8 + below(90);
    call.value_dim = chance(2) ? call.dim : 8 + below(90);
    const DType dtypes[] = {DType::f32, DType::f32, DType::bf16, DType::f16};
    call.dtype = dtypes[below(4)];
    words = std::string(dtype_name(call.dtype)) + ", " + std::to_string(call.batch) + " x " +
            std::to_string(call.heads) + ":" + std::to_string(call.key_heads) + " x " +
            std::to_string(call.queries) + " x " + std::to_string(call.keys) + ", D " +
            std::to_string(call.dim) + ", E " + std::to_string(call.value_dim);
    choose_visibility();
    choose_pattern();
    choose_score();
    // ALiBi over 300 keys and a bias make scores of 10 rather than of 3, whose rounding grows
    // alike.
    call.tolerance = 4;
    call.with_dlse = use("dlse", 2);
    call.with_entropy = use("entropy", 4);
  }

 private:
  int64_t below(int64_t bound) { return random_.below(static_cast<uint32_t>(bound)); }

  bool chance(int64_t of) { return below(of) == 0; }

  bool use(const char* name, int64_t of) {
    const bool yes = chance(of);
    words += yes ? std::string(", ") + name : "";
    return yes;
  }

  void choose_visibility() {
    AttentionOptions& options = call.options;
    if (use("right", 2)) {
      options.visibility.right = chance(2) ? 0 : below(60);
    }
    if (use("left", 3)) {
      options.visibility.left = below(150);
    }
    if (use("offset", 3)) {
      options.positions.offset = below(300) - 150;
    }
    options.positions.exclude_self = use("exclude_self", 6);
  }

  void choose_pattern() {
    AttentionOptions& options = call.options;
    const int64_t pattern = below(6);
    if (pattern == 0) {
      words += ", blocks";
      blocks = RandomBlocks(call.queries, call.keys, 8 * (1 + below(16)), 8 * (1 + below(16)),
                            chance(2) ? 1 : call.heads, random_.bits());
      options.blocks = blocks.blocks;
    } else if (pattern == 1) {
      words += ", used";
      used_query = lengths(call.queries);
      used_key = lengths(call.keys);
      options.sequences = {.used_query = used_query, .used_key = used_key};
    } else if (pattern == 2) {
      words += ", packed";
      call.batch = 1;
      const int64_t documents = 1 + below(4);
      call.packed_queries = cuts(call.queries, documents);
      call.packed_keys = cuts(call.keys, documents);
    } else if (pattern == 3) {
      words += ", positions";
      options.positions.offset = {};
      query = positions(call.heads, call.queries);
      key = positions(call.key_heads, call.keys);
      options.positions.query = query;
      options.positions.key = key;
    }
  }

  void choose_score() {
    AttentionScore& score = call.options.score;
    if (use("softcap", 4)) {
      score.softcap = 2;
    }
    if (use("sinks", 3)) {
      sinks = std::move(Tensor(DType::f32, {call.heads}).random(random_.bits()));
      score.sinks = sinks;
    }
    if (use("alibi", 4)) {
      slopes = std::move(Tensor(DType::f32, {call.heads}).random(random_.bits(), 0.03));
      score.alibi_slopes = slopes;
    }
    if (call.packed_queries.empty() && use("bias", 4)) {
      bias = Tensor(chance(2) ? DType::f32 : DType::bf16,
                    {chance(2) ? 1 : call.batch, chance(2) ? 1 : call.heads,
                     chance(2) ? 1 : call.queries, call.keys});
      bias.random(random_.bits());
      score.bias = bias;
    }
    if (use("dropout", 4)) {
      dropout_seed = random_.bits();
      call.options.dropout = {.probability = 0.2F, .seed = ConstTensorView(&dropout_seed, {1})};
    }
  }

  Tensor lengths(int64_t most) {
    std::vector<int32_t> values;
    for (int64_t b = 0; b < call.batch; ++b) {
      values.push_back(static_cast<int32_t>(below(most + 1)));
    }
    return Tensor::index({call.batch}, values);
  }

  std::vector<int32_t> cuts(int64_t length, int64_t count) {
    std::vector<int32_t> values = {0, static_cast<int32_t>(length)};
    for (int64_t i = 1; i < count; ++i) {
      values.push_back(static_cast<int32_t>(below(length + 1)));
    }
    std::sort(values.begin(), values.end());
    return values;
  }

  Tensor positions(int64_t heads, int64_t count) {
    std::vector<int32_t> values;
    for (int64_t n = 0; n < call.batch * heads; ++n) {
      int64_t position = below(20);
      for (int64_t i = 0; i < count; ++i) {
        const bool padding = i + 3 >= count && count > 8 && n % 2 == 0;
        values.push_back(padding ? 0x7fffffff : static_cast<int32_t>(position));
        position += below(3);
      }
    }
    return Tensor::index({call.batch, heads, count}, values);
  }

  RandomSequence random_;
};

TEST(AttentionRandom, CallsOfManyOptionsEqualTheReference) {
  for (uint64_t seed = 1; seed <= 150; ++seed) {
    const RandomCall random(seed);
    SCOPED_TRACE("seed " + std::to_string(seed) + ": " + random.words);
    random.call.expect_equal_to_reference();
    if (HasFailure()) {
      return;  // the first one says enough
    }
  }
}

TEST(AttentionRandom, BitsDoNotDependOnThreads) {
  for (uint64_t seed = 501; seed <= 540; ++seed) {
    const RandomCall random(seed);
    SCOPED_TRACE("seed " + std::to_string(seed) + ": " + random.words);
    set_thread_count(1);
    const Results one = random.call.run(AttentionBackend::cpu);
    set_thread_count(2 + static_cast<int>(seed % 5));
    const Results many = random.call.run(AttentionBackend::cpu);
    EXPECT_TRUE(one.out.same_bits(many.out)) << "out";
    EXPECT_TRUE(one.lse.same_bits(many.lse)) << "lse";
    EXPECT_TRUE(one.dq.same_bits(many.dq)) << "dq";
    EXPECT_TRUE(one.dk.same_bits(many.dk)) << "dk";
    EXPECT_TRUE(one.dv.same_bits(many.dv)) << "dv";
    if (random.call.options.score.sinks) {
      EXPECT_TRUE(one.dsinks.same_bits(many.dsinks)) << "dsinks";
    }
    if (random.call.options.score.bias) {
      EXPECT_TRUE(one.dbias.same_bits(many.dbias)) << "dbias";
    }
    if (random.call.with_entropy) {
      EXPECT_TRUE(one.entropy.same_bits(many.entropy)) << "entropy";
    }
  }
  set_thread_count(0);
}

TEST(AttentionTargets, EachEqualsTheReference) {
  for_each_target([](int64_t lanes) {
    // Four panels of three vectors: the tile tells which kernel was chosen.
    const ConstTensorView rows(static_cast<const void*>(nullptr), DType::f32, {1, 1, 4096, 64});
    const TensorView out(static_cast<void*>(nullptr), DType::f32, {1, 1, 4096, 64});
    EXPECT_EQ(attention_forward_cpu_tile({.out = out}, {rows, rows, rows}, {}).rows, 12 * lanes);
    for (uint64_t seed = 1001; seed <= 1060; ++seed) {
      const RandomCall random(seed);
      SCOPED_TRACE("seed " + std::to_string(seed) + ": " + random.words);
      random.call.expect_equal_to_reference();
    }
  });
}

}  // namespace
}  // namespace flashloom
