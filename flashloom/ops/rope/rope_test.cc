#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/tensor_for_test.h"
#include "flashloom/ops/rope/rope_reference.h"

namespace flashloom {
namespace {

// Sine and cosine to half an ulp, the direction exact, two products and a sum, for |x| of a few
// units; half an ulp of bf16 storage.
double bound(DType dtype) {
  return 8 * 0x1p-24 + (dtype == DType::bf16 ? 0x1p-8 : 0);
}

struct Heads {
  OwnedTensor q, k, v, positions, frequencies, q_bias, k_bias, v_bias;

  Heads(DType dtype, DType bias_dtype, int64_t tokens, int64_t head_dim, int64_t padding = 0)
      : q(normal_tensor(dtype, {tokens, 5, head_dim}, 1, 1, 0, padding)),
        k(normal_tensor(dtype, {tokens, 2, head_dim}, 2, 1, 0, padding)),
        v(normal_tensor(dtype, {tokens, 2, head_dim}, 3, 1, 0, padding)),
        positions(DType::i32, {tokens}),
        frequencies(DType::f32, {head_dim / 2}),
        q_bias(normal_tensor(bias_dtype, {5 * head_dim}, 4)),
        k_bias(normal_tensor(bias_dtype, {2 * head_dim}, 5)),
        v_bias(normal_tensor(bias_dtype, {2 * head_dim}, 6)) {
    RandomSequence random(7, RandomStream::test);
    for (int64_t t = 0; t < tokens; ++t) {
      positions.set({t}, std::floor(std::exp2(random.uniform(0, 20))));  // up to a million
    }
    rope_frequencies(frequencies, {.base = 1e6});
  }

  RopeBias bias() const { return {.q = q_bias, .k = k_bias, .v = v_bias}; }
};

class RopeDType : public testing::TestWithParam<std::tuple<DType, DType>> {};

TEST_P(RopeDType, EqualsTheReference) {
  const auto [dtype, bias_dtype] = GetParam();
  for (const int64_t head_dim : {2, 6, 64, 80, 128, 200}) {
    for (const bool with_bias : {false, true}) {
      const Heads heads(dtype, bias_dtype, 35, head_dim, 3);
      const RopeBias bias = with_bias ? heads.bias() : RopeBias{};
      const Heads exact(dtype, bias_dtype, 35, head_dim);
      const OwnedTensor exact_q = to_dtype(heads.q, DType::f64);
      const OwnedTensor exact_k = to_dtype(heads.k, DType::f64);
      const OwnedTensor exact_v = to_dtype(heads.v, DType::f64);
      rope_forward(heads.q, heads.k, heads.v, heads.positions, heads.frequencies, bias);
      rope_forward_reference(exact_q, exact_k, exact_v, heads.positions, heads.frequencies, bias);
      EXPECT_LE(max_error(heads.q, exact_q), bound(dtype)) << head_dim;
      EXPECT_LE(max_error(heads.k, exact_k), bound(dtype)) << head_dim;
      EXPECT_LE(max_error(heads.v, exact_v), bound(dtype)) << head_dim;
    }
  }
}

TEST_P(RopeDType, BackwardEqualsTheReference) {
  const auto [dtype, bias_dtype] = GetParam();
  const int64_t tokens = 150;  // three blocks of a column sum
  for (const int64_t head_dim : {6, 64, 200}) {
    const Heads heads(dtype, bias_dtype, tokens, head_dim, 3);
    const OwnedTensor exact_q = to_dtype(heads.q, DType::f64);
    const OwnedTensor exact_k = to_dtype(heads.k, DType::f64);
    const OwnedTensor q_sum = normal_tensor(DType::f32, {5 * head_dim}, 8);
    const OwnedTensor k_sum = normal_tensor(DType::f32, {2 * head_dim}, 9);
    const OwnedTensor v_sum = normal_tensor(DType::f32, {2 * head_dim}, 10);
    const OwnedTensor exact_q_sum = to_dtype(q_sum, DType::f64);
    const OwnedTensor exact_k_sum = to_dtype(k_sum, DType::f64);
    const OwnedTensor exact_v_sum = to_dtype(v_sum, DType::f64);
    rope_backward(heads.q, heads.k, heads.v, heads.positions, heads.frequencies,
                  {.q = q_sum, .k = k_sum, .v = v_sum});
    rope_backward_reference(exact_q, exact_k, heads.v, heads.positions, heads.frequencies,
                            {.q = exact_q_sum, .k = exact_k_sum, .v = exact_v_sum});
    EXPECT_LE(max_error(heads.q, exact_q), bound(dtype)) << head_dim;
    EXPECT_LE(max_error(heads.k, exact_k), bound(dtype)) << head_dim;
    // 150 terms of order 1 in blocks of 64, each term with its own error of independent sign:
    // 6 standard deviations of the sum; the roundings of the sums themselves are (64 + 3) ulp.
    const double terms = 6 * std::sqrt(static_cast<double>(tokens)) * bound(dtype);
    const double sums = 67 * 0x1p-24 * 20;
    EXPECT_LE(max_error(q_sum, exact_q_sum), terms + sums) << head_dim;
    EXPECT_LE(max_error(k_sum, exact_k_sum), terms + sums) << head_dim;
    EXPECT_LE(max_error(v_sum, exact_v_sum), sums) << head_dim;
  }
}

TEST_P(RopeDType, BackwardUndoesForward) {
  const auto [dtype, bias_dtype] = GetParam();
  const Heads heads(dtype, bias_dtype, 20, 64);
  const OwnedTensor q = heads.q;
  const OwnedTensor k = heads.k;
  rope_forward(q, k, {}, heads.positions, heads.frequencies);
  EXPECT_GT(max_error(q, heads.q), 0.5);
  rope_backward(q, k, {}, heads.positions, heads.frequencies);
  // A rotation keeps lengths; an error of one half turns into the other: at most twice sqrt 2.
  EXPECT_LE(max_error(q, heads.q), 6 * bound(dtype));
  EXPECT_LE(max_error(k, heads.k), 6 * bound(dtype));
}

TEST_P(RopeDType, GivesTheSameBitsForAnyNumberOfThreads) {
  const auto [dtype, bias_dtype] = GetParam();
  std::vector<OwnedTensor> results[2];
  for (int run = 0; run < 2; ++run) {
    set_thread_count(run == 0 ? 1 : 5);
    const Heads heads(dtype, bias_dtype, 333, 64);
    const OwnedTensor q_sum(DType::f32, {5 * 64});
    const OwnedTensor v_sum(DType::f32, {2 * 64});
    rope_forward(heads.q, heads.k, heads.v, heads.positions, heads.frequencies, heads.bias());
    results[run] = {heads.q, heads.k, heads.v};
    rope_backward(heads.q, heads.k, heads.v, heads.positions, heads.frequencies,
                  {.q = q_sum, .k = {}, .v = v_sum});
    results[run].insert(results[run].end(), {heads.q, heads.k, q_sum, v_sum});
  }
  set_thread_count(0);
  for (size_t i = 0; i < results[0].size(); ++i) {
    EXPECT_TRUE(same_bits(results[0][i], results[1][i])) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(, RopeDType,
                         testing::Values(std::tuple(DType::f32, DType::f32),
                                         std::tuple(DType::bf16, DType::bf16),
                                         std::tuple(DType::bf16, DType::f32)));

TEST(Rope, RotatesSlicesOfOneBufferAndNothingElse) {
  const int64_t tokens = 9;
  const OwnedTensor buffer = normal_tensor(DType::f32, {tokens, 7, 16}, 1);
  const OwnedTensor before = buffer;
  OwnedTensor positions(DType::i32, {tokens});
  positions.fill(3);
  const OwnedTensor frequencies(DType::f32, {8});
  rope_frequencies(frequencies, {});
  rope_forward(buffer.view().slice(1, 0, 4), buffer.view().slice(1, 4, 1), {}, positions,
               frequencies);
  EXPECT_EQ(max_error(buffer.view().slice(1, 5, 2), before.view().slice(1, 5, 2)), 0);
  EXPECT_GT(max_error(buffer.view().slice(1, 0, 5), before.view().slice(1, 0, 5)), 0.1);
}

TEST(Rope, ScoresDependOnTheDistanceOfPositionsOnly) {
  const OwnedTensor q = normal_tensor(DType::f64, {1, 1, 32}, 1);
  const OwnedTensor k = normal_tensor(DType::f64, {1, 1, 32}, 2);
  OwnedTensor position(DType::i32, {1});
  const OwnedTensor frequencies(DType::f32, {16});
  rope_frequencies(frequencies, {});
  const auto score = [&](int query, int key) {
    const OwnedTensor a = to_dtype(q, DType::f32);
    const OwnedTensor b = to_dtype(k, DType::f32);
    position.set({0}, query);
    rope_forward(a, {}, {}, position, frequencies);
    position.set({0}, key);
    rope_forward(b, {}, {}, position, frequencies);
    return dot(a, b);
  };
  // Angles near 1000 are rounded to 2^-15; 32 products of order 1.
  EXPECT_NEAR(score(1005, 1000), score(5, 0), 32 * 2 * 0x1p-15);
  EXPECT_GT(std::fabs(score(5, 0) - score(0, 5)), 0.01);
}

TEST(Rope, ReferenceGradientsEqualFiniteDifferences) {
  const int64_t head_dim = 6;
  const OwnedTensor q0 = normal_tensor(DType::f64, {4, 2, head_dim}, 1);
  const OwnedTensor k0 = normal_tensor(DType::f64, {4, 1, head_dim}, 2);
  const OwnedTensor v0 = normal_tensor(DType::f64, {4, 1, head_dim}, 3);
  const OwnedTensor q_bias = normal_tensor(DType::f64, {2 * head_dim}, 4);
  const OwnedTensor k_bias = normal_tensor(DType::f64, {head_dim}, 5);
  const OwnedTensor v_bias = normal_tensor(DType::f64, {head_dim}, 6);
  const OwnedTensor dq = normal_tensor(DType::f64, {4, 2, head_dim}, 7);
  const OwnedTensor dk = normal_tensor(DType::f64, {4, 1, head_dim}, 8);
  const OwnedTensor dv = normal_tensor(DType::f64, {4, 1, head_dim}, 9);
  OwnedTensor positions(DType::i32, {4});
  for (int64_t t = 0; t < 4; ++t) {
    positions.set({t}, static_cast<double>(3 * t));
  }
  const OwnedTensor frequencies(DType::f32, {head_dim / 2});
  rope_frequencies(frequencies, {});
  const auto value = [&] {
    const OwnedTensor q = q0;
    const OwnedTensor k = k0;
    const OwnedTensor v = v0;
    rope_forward_reference(q, k, v, positions, frequencies,
                           {.q = q_bias, .k = k_bias, .v = v_bias});
    return dot(q, dq) + dot(k, dk) + dot(v, dv);
  };
  const OwnedTensor dq0 = dq;
  const OwnedTensor dk0 = dk;
  const OwnedTensor dq_bias(DType::f64, {2 * head_dim});
  const OwnedTensor dk_bias(DType::f64, {head_dim});
  const OwnedTensor dv_bias(DType::f64, {head_dim});
  rope_backward_reference(dq0, dk0, dv, positions, frequencies,
                          {.q = dq_bias, .k = dk_bias, .v = dv_bias});
  const auto check_gradient = [&](const TensorView& x, const ConstTensorView& dx) {
    for_each_index(x, [&](auto index) {
      EXPECT_NEAR(load_element(dx, index), finite_difference(x, index, value), 1e-8);
    });
  };
  check_gradient(q0, dq0);
  check_gradient(k0, dk0);
  check_gradient(q_bias, dq_bias);
  check_gradient(k_bias, dk_bias);
  check_gradient(v_bias, dv_bias);
}

TEST(RopeFrequencies, EqualThoseOfTransformers) {
  std::ifstream file(std::string(FLASHLOOM_SOURCE_DIR) + "/tests/golden/ops/rope_frequencies.txt");
  std::string line;
  int count = 0;
  while (std::getline(file, line)) {
    std::istringstream words(line);
    RopeFrequencies options;
    int64_t head_dim = 0;
    std::string kind;
    words >> options.base >> head_dim >> kind >> options.factor >> options.low_frequency_factor >>
        options.high_frequency_factor >> options.original_positions;
    options.scaling = kind == "llama3"   ? RopeFrequencies::Scaling::llama3
                      : kind == "linear" ? RopeFrequencies::Scaling::linear
                                         : RopeFrequencies::Scaling::none;
    const OwnedTensor frequencies(DType::f32, {head_dim / 2});
    rope_frequencies(frequencies, options);
    for (int64_t i = 0; i < head_dim / 2; ++i) {
      std::string word;
      ASSERT_TRUE(words >> word);
      const double expected = std::strtod(word.c_str(), nullptr);
      // Its power function is good to one ulp, ours to half of one; blending adds its roundings.
      EXPECT_NEAR(frequencies.at({i}), expected, expected * 4 * 0x1p-23) << line.substr(0, 40);
    }
    ++count;
  }
  EXPECT_EQ(count, 7);
}

TEST(RopeFrequencies, RejectBadArguments) {
  const OwnedTensor frequencies(DType::f32, {8});
  const OwnedTensor half(DType::bf16, {8});
  const auto llama3 = RopeFrequencies::Scaling::llama3;
  EXPECT_THROW(rope_frequencies(half, {}), InvalidArgument);
  EXPECT_THROW(rope_frequencies({}, {}), InvalidArgument);
  EXPECT_THROW(rope_frequencies(frequencies, {.base = 0}), InvalidArgument);
  EXPECT_THROW(rope_frequencies(frequencies, {.base = std::nan("")}), InvalidArgument);
  EXPECT_THROW(rope_frequencies(frequencies, {.scaling = llama3, .factor = 0}), InvalidArgument);
  EXPECT_THROW(rope_frequencies(frequencies, {.scaling = llama3, .high_frequency_factor = 1}),
               InvalidArgument);
}

TEST(Rope, RejectsBadArguments) {
  const OwnedTensor q(DType::f32, {4, 2, 8});
  const OwnedTensor k(DType::f32, {4, 1, 8});
  const OwnedTensor short_k(DType::f32, {3, 1, 8});
  const OwnedTensor half_k(DType::bf16, {4, 1, 8});
  const OwnedTensor odd(DType::f32, {4, 1, 7});
  const OwnedTensor positions(DType::i32, {4});
  const OwnedTensor floats(DType::f32, {4});
  const OwnedTensor frequencies(DType::f32, {4});
  const OwnedTensor three(DType::f32, {3});
  const OwnedTensor bias(DType::f32, {8});
  EXPECT_THROW(rope_forward(q, short_k, {}, positions, frequencies), InvalidArgument);
  EXPECT_THROW(rope_forward(q, half_k, {}, positions, frequencies), InvalidArgument);
  EXPECT_THROW(rope_forward(odd, {}, {}, positions, three), InvalidArgument);
  EXPECT_THROW(rope_forward(q, k, {}, floats, frequencies), InvalidArgument);
  EXPECT_THROW(rope_forward(q, k, {}, positions, three), InvalidArgument);
  EXPECT_THROW(rope_forward(q, k, {}, {}, frequencies), InvalidArgument);
  EXPECT_THROW(rope_forward(q, k, {}, positions, frequencies, {.q = bias, .k = {}, .v = {}}),
               InvalidArgument);
  EXPECT_THROW(rope_forward(q, k, {}, positions, frequencies, {.q = {}, .k = {}, .v = bias}),
               InvalidArgument);
  EXPECT_THROW(rope_forward(q.view().transpose(0, 2), {}, {}, positions, frequencies),
               InvalidArgument);
  EXPECT_THROW(rope_backward(q, k, {}, positions, frequencies, {.q = {}, .k = {}, .v = bias}),
               InvalidArgument);
  EXPECT_THROW(rope_backward(q, short_k, {}, positions, frequencies), InvalidArgument);
}

}  // namespace
}  // namespace flashloom
