#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/attention_test_case.h"

// The reference's gradients against finite differences, in float64 throughout.

namespace flashloom {
namespace {

using attention_test::backward;
using attention_test::forward;
using attention_test::Tensor;
using attention_test::with_backend;

constexpr int64_t kBatch = 2;
constexpr int64_t kHeads = 4;
constexpr int64_t kKeyHeads = 2;
constexpr int64_t kQueries = 5;
constexpr int64_t kKeys = 7;
constexpr int64_t kHeadDim = 3;
constexpr int64_t kValueDim = 4;

// A small call in float64 whose loss mixes out, lse and entropy.
class GradientCheck {
 public:
  AttentionOptions options;
  Tensor q{DType::f64, {kBatch, kHeads, kQueries, kHeadDim}};
  Tensor k{DType::f64, {kBatch, kKeyHeads, kKeys, kHeadDim}};
  Tensor v{DType::f64, {kBatch, kKeyHeads, kKeys, kValueDim}};
  Tensor sinks{DType::f64, {kHeads}};
  Tensor bias;
  float entropy_order = 1;

  GradientCheck() {
    q.random(1);
    k.random(2);
    v.random(3);
    sinks.random(4);
    dout_.random(5);
    dlse_.random(6);
    dentropy_.random(7);
  }

  void run() {
    set_thread_count(1);  // thousands of tiny calls
    options = with_backend(options, AttentionBackend::reference);
    forward_pass();
    Tensor dq(DType::f64, {kBatch, kHeads, kQueries, kHeadDim});
    Tensor dk(DType::f64, {kBatch, kKeyHeads, kKeys, kHeadDim});
    Tensor dv(DType::f64, {kBatch, kKeyHeads, kKeys, kValueDim});
    Tensor dsinks(DType::f64, {kHeads});
    Tensor dbias;
    AttentionGradients gradients = {.dq = dq, .dk = dk, .dv = dv};
    if (options.score.sinks) {
      gradients.dsinks = dsinks;
    }
    if (options.score.bias) {
      dbias = bias.as(DType::f64);
      gradients.dbias = dbias;
    }
    backward(gradients, {q, k, v},
             {.out = out_,
              .lse = lse_,
              .entropy = entropy_,
              .dout = dout_,
              .dlse = dlse_,
              .dentropy = dentropy_,
              .entropy_order = entropy_order},
             options);
    compare(q, dq, "dq");
    compare(k, dk, "dk");
    compare(v, dv, "dv");
    if (options.score.sinks) {
      compare(sinks, dsinks, "dsinks");
    }
    if (options.score.bias) {
      compare(bias, dbias, "dbias");
    }
    set_thread_count(0);
  }

 private:
  void forward_pass() {
    forward({.out = out_, .lse = lse_, .entropy = entropy_, .entropy_order = entropy_order},
            {q, k, v}, options);
  }

  double loss() {
    forward_pass();
    double sum = 0;
    for (int64_t i = 0; i < out_.size(); ++i) {
      sum += out_.get(i) * dout_.get(i);
    }
    for (int64_t i = 0; i < lse_.size(); ++i) {
      if (std::isfinite(lse_.get(i))) {
        sum += lse_.get(i) * dlse_.get(i) + entropy_.get(i) * dentropy_.get(i);
      }
    }
    return sum;
  }

  void compare(Tensor& input, const Tensor& gradient, const char* name) {
    constexpr double kStep = 1e-5;
    for (int64_t i = 0; i < input.size(); ++i) {
      const double before = input.get(i);
      input.set(i, before + kStep);
      const double up = loss();
      input.set(i, before - kStep);
      const double down = loss();
      input.set(i, before);
      // Third derivatives of order 10 and steps of 1e-5 leave 1e-9; rounding 1e-10 / 1e-5 / 1e5.
      EXPECT_NEAR(gradient.get(i), (up - down) / (2 * kStep), 2e-8) << name << "[" << i << "]";
    }
  }

  Tensor out_{DType::f64, {kBatch, kHeads, kQueries, kValueDim}};
  Tensor lse_{DType::f64, {kBatch, kHeads, kQueries}};
  Tensor entropy_{DType::f64, {kBatch, kHeads, kQueries}};
  Tensor dout_{DType::f64, {kBatch, kHeads, kQueries, kValueDim}};
  Tensor dlse_{DType::f64, {kBatch, kHeads, kQueries}};
  Tensor dentropy_{DType::f64, {kBatch, kHeads, kQueries}};
};

TEST(AttentionGradient, FullMatchesFiniteDifferences) {
  GradientCheck().run();
}

TEST(AttentionGradient, CausalMatchesFiniteDifferences) {
  GradientCheck check;
  check.options.visibility.right = 0;
  check.run();
}

TEST(AttentionGradient, WindowWithEmptyRowsMatchesFiniteDifferences) {
  GradientCheck check;
  check.options.visibility = {.left = 1, .right = 0};
  check.options.positions.offset = 4;
  check.run();
}

TEST(AttentionGradient, SinksAndSoftcapMatchFiniteDifferences) {
  GradientCheck check;
  check.options.visibility.right = 0;
  check.options.score.softcap = 1.5;
  check.options.score.scale = 0.7F;
  check.options.score.sinks = check.sinks;
  check.run();
}

TEST(AttentionGradient, RenyiEntropyMatchesFiniteDifferences) {
  for (const float order : {0.5F, 2.0F}) {
    GradientCheck check;
    check.entropy_order = order;
    check.options.score.sinks = check.sinks;
    check.run();
  }
}

TEST(AttentionGradient, AlibiAndBroadcastBiasMatchFiniteDifferences) {
  const std::vector<int64_t> shapes[] = {
      {kBatch, kHeads, kQueries, kKeys}, {1, kHeads, 1, kKeys}, {kBatch, 1, kQueries, kKeys}};
  for (const auto& shape : shapes) {
    GradientCheck check;
    Tensor slopes(DType::f32, {kHeads});
    slopes.random(9, 0.3);
    check.bias = Tensor(DType::f64, shape);
    check.bias.random(10);
    check.options.score.bias = check.bias;
    check.options.score.alibi_slopes = slopes;
    check.run();
  }
}

TEST(AttentionGradient, DropoutMatchesFiniteDifferences) {
  GradientCheck check;
  uint64_t seed = 42;
  check.options.dropout = {.probability = 0.3F, .seed = ConstTensorView(&seed, {1})};
  check.run();
}

TEST(AttentionGradient, UsedLengthsMatchFiniteDifferences) {
  GradientCheck check;
  const Tensor used_query = Tensor::index({kBatch}, {5, 3});
  const Tensor used_key = Tensor::index({kBatch}, {0, 6});
  check.options.sequences.used_query = used_query;
  check.options.sequences.used_key = used_key;
  check.options.visibility.right = 0;
  check.run();
}

TEST(AttentionGradient, BlockMaskMatchesFiniteDifferences) {
  GradientCheck check;
  // Blocks of 2 x 8: row 0 partial, row 1 nothing, row 2 full.
  const Tensor offsets = Tensor::index({1, 1, 4}, {0, 1, 1, 2});
  const Tensor columns = Tensor::index({1, 1, 2}, {0, 0});
  const Tensor partial = Tensor::index({1, 1, 2}, {0, -1});
  const Tensor column_offsets = Tensor::index({1, 1, 2}, {0, 2});
  const Tensor rows = Tensor::index({1, 1, 2}, {0, 2});
  const uint8_t bits[] = {0b01010110, 0b00100001};
  check.options.blocks = {.block_rows = 2,
                          .block_keys = 8,
                          .row_offsets = offsets,
                          .columns = columns,
                          .partial = partial,
                          .bits = ConstTensorView(bits, {1, 2, 1}),
                          .column_offsets = column_offsets,
                          .rows = rows,
                          .transposed_partial = partial};
  check.run();
}

TEST(AttentionGradient, PositionsBucketsAndOutputRowsMatchFiniteDifferences) {
  GradientCheck check;
  std::vector<int32_t> query_positions;
  std::vector<int32_t> key_positions;
  std::vector<int32_t> query_offsets;
  std::vector<int32_t> key_offsets;
  std::vector<int32_t> output;
  for (int64_t n = 0; n < kBatch * kHeads; ++n) {
    query_positions.insert(query_positions.end(), {0, 4, 2, 3, 0x7fffffff});
    query_offsets.insert(query_offsets.end(), {0, 2, 5});
    output.insert(output.end(), {3, 0, 1, 4, -1});
  }
  for (int64_t n = 0; n < kBatch * kKeyHeads; ++n) {
    key_positions.insert(key_positions.end(), {0, 1, 4, 1, 2, 3, 4});
    key_offsets.insert(key_offsets.end(), {0, 3, 7});
  }
  const Tensor query = Tensor::index({kBatch, kHeads, kQueries}, query_positions);
  const Tensor key = Tensor::index({kBatch, kKeyHeads, kKeys}, key_positions);
  const Tensor query_buckets = Tensor::index({kBatch, kHeads, 3}, query_offsets);
  const Tensor key_buckets = Tensor::index({kBatch, kKeyHeads, 3}, key_offsets);
  const Tensor index = Tensor::index({kBatch, kHeads, kQueries}, output);
  check.options.visibility.right = 0;
  check.options.positions = {.query = query,
                             .key = key,
                             .output_index = index,
                             .query_bucket_offsets = query_buckets,
                             .key_bucket_offsets = key_buckets,
                             .exclude_self = true};
  check.run();
}

// Along random directions, on random shapes and with random options: the change of the loss is the
// sum of gradient times direction.
TEST(AttentionGradient, RandomShapesMatchFiniteDifferencesAlongDirections) {
  set_thread_count(1);
  RandomSequence random(29, RandomStream::test);
  const auto below = [&](int64_t bound) {
    return static_cast<int64_t>(random.below(static_cast<uint32_t>(bound)));
  };
  for (int round = 0; round < 40; ++round) {
    const int64_t batch = 1 + below(2);
    const int64_t key_heads = 1 + below(2);
    const int64_t heads = key_heads * (1 + below(3));
    const int64_t queries = 1 + below(30);
    const int64_t keys = 1 + below(40);
    const int64_t dim = 1 + below(20);
    const int64_t value_dim = 1 + below(20);
    SCOPED_TRACE("round " + std::to_string(round));
    const auto normal = [&](const std::vector<int64_t>& shape) {
      return std::move(Tensor(DType::f64, shape).random(random.bits()));
    };
    Tensor q = normal({batch, heads, queries, dim});
    Tensor k = normal({batch, key_heads, keys, dim});
    Tensor v = normal({batch, key_heads, keys, value_dim});
    Tensor sinks = normal({heads});
    Tensor bias = normal({1, heads, queries, keys});
    const Tensor dout = normal({batch, heads, queries, value_dim});
    const Tensor dlse = normal({batch, heads, queries});
    const Tensor dentropy = normal({batch, heads, queries});
    const uint64_t seed = random.bits();
    AttentionOptions options = with_backend({}, AttentionBackend::reference);
    options.visibility = {.left = below(3) == 0 ? below(20) : -1, .right = below(2) == 0 ? 0 : -1};
    if (below(3) == 0) {
      options.positions.offset = below(40) - 20;
    }
    options.score.softcap = below(3) == 0 ? 2.0F : 0.0F;
    if (below(2) == 0) {
      options.score.sinks = sinks;
    }
    if (below(2) == 0) {
      options.score.bias = bias;
    }
    if (below(3) == 0) {
      options.dropout = {.probability = 0.3F, .seed = ConstTensorView(&seed, {1})};
    }
    const Tensor out(DType::f64, {batch, heads, queries, value_dim});
    const Tensor lse(DType::f64, {batch, heads, queries});
    const Tensor entropy(DType::f64, {batch, heads, queries});
    const auto loss = [&] {
      forward({.out = out, .lse = lse, .entropy = entropy}, {q, k, v}, options);
      double sum = 0;
      for (int64_t i = 0; i < out.size(); ++i) {
        sum += out.get(i) * dout.get(i);
      }
      for (int64_t i = 0; i < lse.size(); ++i) {
        sum += std::isfinite(lse.get(i)) ? lse.get(i) * dlse.get(i) : 0;
        sum += entropy.get(i) * dentropy.get(i);
      }
      return sum;
    };
    loss();
    const Tensor dq(DType::f64, {batch, heads, queries, dim});
    const Tensor dk(DType::f64, {batch, key_heads, keys, dim});
    const Tensor dv(DType::f64, {batch, key_heads, keys, value_dim});
    const Tensor dsinks(DType::f64, {heads});
    const Tensor dbias(DType::f64, {1, heads, queries, keys});
    AttentionGradients gradients = {.dq = dq, .dk = dk, .dv = dv};
    std::vector<std::pair<Tensor*, const Tensor*>> inputs = {{&q, &dq}, {&k, &dk}, {&v, &dv}};
    if (options.score.sinks) {
      gradients.dsinks = dsinks;
      inputs.emplace_back(&sinks, &dsinks);
    }
    if (options.score.bias) {
      gradients.dbias = dbias;
      inputs.emplace_back(&bias, &dbias);
    }
    backward(gradients, {q, k, v},
             {.out = out,
              .lse = lse,
              .entropy = entropy,
              .dout = dout,
              .dlse = dlse,
              .dentropy = dentropy},
             options);
    constexpr double kStep = 1e-5;
    double expected = 0;
    std::vector<std::vector<double>> directions;
    for (const auto& [input, gradient] : inputs) {
      directions.emplace_back();
      for (int64_t i = 0; i < input->size(); ++i) {
        directions.back().push_back(random.normal() / std::sqrt(static_cast<double>(queries)));
        expected += directions.back().back() * gradient->get(i);
      }
    }
    const auto move = [&](double step) {
      for (size_t n = 0; n < inputs.size(); ++n) {
        for (int64_t i = 0; i < inputs[n].first->size(); ++i) {
          inputs[n].first->set(
              i, inputs[n].first->get(i) + step * directions[n][static_cast<size_t>(i)]);
        }
      }
    };
    move(kStep);
    const double up = loss();
    move(-2 * kStep);
    const double down = loss();
    // Third derivatives of order 1e4 leave 1e-6 of the sum's size.
    EXPECT_NEAR((up - down) / (2 * kStep), expected, 1e-6 * (10 + std::fabs(expected)));
  }
  set_thread_count(0);
}

}  // namespace
}  // namespace flashloom
