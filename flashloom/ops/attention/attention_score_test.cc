#include <gtest/gtest.h>

#include <array>
#include <string>
#include <utility>
#include <vector>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/attention_test_case.h"

// The CPU kernels against the float64 reference: what happens to scores and probabilities.

namespace flashloom {
namespace {

using attention_test::Case;
using attention_test::forward;
using attention_test::Results;
using attention_test::Tensor;
using attention_test::with_backend;

TEST(AttentionScore, GradientsFlowIntoTheLse) {
  Case call = {.queries = 60, .keys = 60, .with_dlse = true};
  call.options.visibility.right = 0;
  call.expect_equal_to_reference();
}

TEST(AttentionScore, SoftcapSinksAlibiAndBiasEqualTheReference) {
  const Tensor sinks = std::move(Tensor(DType::f32, {4}).random(11));
  const Tensor slopes = std::move(Tensor(DType::f32, {4}).random(12, 0.1));
  const Tensor own_slopes = std::move(Tensor(DType::f32, {2, 4}).random(12, 0.1));
  const std::vector<int64_t> shapes[] = {
      {2, 4, 70, 110}, {1, 4, 1, 110}, {2, 1, 70, 110}, {1, 1, 70, 110}};
  int round = 0;
  for (const auto& shape : shapes) {
    SCOPED_TRACE(round);
    const DType dtype = round == 1 ? DType::bf16 : round == 2 ? DType::f16 : DType::f32;
    const Tensor bias = std::move(Tensor(dtype, shape).random(13));
    Case call = {.batch = 2, .heads = 4, .key_heads = 2, .queries = 70, .keys = 110};
    call.options.visibility.right = 0;
    call.options.score = {.softcap = round < 2 ? 2.0F : 0.0F,
                          .alibi_slopes = round == 0 ? slopes : own_slopes,
                          .bias = bias,
                          .sinks = sinks};
    call.with_dlse = true;
    call.expect_equal_to_reference();
    ++round;
  }
}

TEST(AttentionScore, AnEmptyRowIsTheSink) {
  const Tensor sinks = std::move(Tensor(DType::f32, {2}).fill(-3));
  Case call = {.heads = 2, .queries = 30, .keys = 30};
  call.options.visibility.right = 0;
  call.options.positions.offset = -10;
  call.options.score.sinks = sinks;
  call.with_entropy = true;
  call.expect_equal_to_reference();
  const Results results = call.run(AttentionBackend::cpu);
  EXPECT_EQ(results.lse.get(0), -3);
  EXPECT_EQ(results.out.get(0), 0);
}

TEST(AttentionScore, EntropyAndItsGradientEqualTheReference) {
  const Tensor sinks = std::move(Tensor(DType::f32, {2}).random(11));
  for (const float order : {1.0F, 0.5F, 2.0F}) {
    for (const bool with_sinks : {false, true}) {
      SCOPED_TRACE(order);
      Case call = {.queries = 100, .keys = 140, .with_entropy = true, .entropy_order = order};
      call.options.visibility.right = 0;
      if (with_sinks) {
        call.options.score.sinks = sinks;
      }
      call.expect_equal_to_reference();
    }
  }
}

TEST(AttentionScore, DropoutEqualsTheReference) {
  const uint64_t seed = 7;
  const uint64_t offset = 3;
  for (const int64_t right : {-1, 0}) {
    Case call = {.batch = 2, .heads = 4, .key_heads = 2, .queries = 70, .keys = 81};
    call.options.visibility.right = right;
    call.options.dropout = {.probability = 0.25F,
                            .seed = ConstTensorView(&seed, {1}),
                            .offset = ConstTensorView(&offset, {1})};
    call.expect_equal_to_reference();
  }
}

TEST(AttentionScore, DropoutKeepsTheMean) {
  // With equal scores and v = 1, out is the share of kept keys over the probability of keeping.
  const uint64_t seed = 7;
  AttentionOptions options;
  options.dropout = {.probability = 0.3F, .seed = ConstTensorView(&seed, {1})};
  const Tensor zero = std::move(Tensor(DType::f32, {1, 1, 300, 16}).fill(0));
  const Tensor one = std::move(Tensor(DType::f32, {1, 1, 300, 16}).fill(1));
  Tensor out(DType::f32, {1, 1, 300, 16});
  forward({.out = out}, {zero, zero, one}, with_backend(options, AttentionBackend::cpu));
  double sum = 0;
  for (int64_t i = 0; i < 300; ++i) {
    sum += out.get(i * 16) / 300;
  }
  // 90,000 draws of variance 0.3 / 0.7: deviation of the mean 2.2e-3.
  EXPECT_NEAR(sum, 1, 0.01);
}

}  // namespace
}  // namespace flashloom
