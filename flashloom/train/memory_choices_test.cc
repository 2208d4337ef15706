#include "flashloom/train/memory_choices.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

#include "flashloom/core/error.h"
#include "flashloom/io/model_files.h"
#include "flashloom/models/llama/llama.h"

namespace flashloom {
namespace {

using testing::HasSubstr;

constexpr MachineRates kMachine = {.flops = 1e11, .bytes = 1e10};

// Qwen2.5-0.5B as its config.json says, with the layers' sizes that decide its memory.
ModelConfig qwen_half_billion() {
  ModelConfig config =
      ModelFiles::open(std::string(FLASHLOOM_SOURCE_DIR) + "/tests/golden/models/qwen2").config();
  config.vocabulary_size = 151936;
  config.hidden_size = 896;
  config.intermediate_size = 4864;
  config.layers = 24;
  config.heads = 14;
  config.kv_heads = 2;
  config.head_dim = 64;
  config.tied_embeddings = true;
  return config;
}

MemoryQuestion full_question() {
  return {.config = qwen_half_billion(),
          .sequence_length = 1024,
          .batch_tokens = 4096,
          .process_bytes = 50'000'000};
}

const MemoryChoice& find(const std::vector<MemoryChoice>& choices, LlamaRecompute recompute,
                         OptimizerMoments moments, DType weights, int64_t bins) {
  for (const MemoryChoice& choice : choices) {
    if (choice.recompute == recompute && choice.moments == moments &&
        choice.weight_dtype == weights && choice.shape.bins_per_step == bins) {
      return choice;
    }
  }
  throw Error("no such choice");
}

TEST(MemoryChoices, CountWhatEachKindTakes) {
  const std::vector<MemoryChoice> choices = memory_choices(full_question(), kMachine);
  EXPECT_EQ(choices.size(), 4U * 2 * 2 * 3);
  constexpr auto kF32 = OptimizerMoments::f32;
  const MemoryChoice& plain = find(choices, LlamaRecompute::norms, kF32, DType::f32, 1);
  constexpr double kParameters = 494'032'768;
  EXPECT_NEAR(static_cast<double>(plain.weights), 4 * kParameters, 1e5);
  EXPECT_NEAR(static_cast<double>(plain.gradients), 4 * kParameters, 1e5);
  EXPECT_NEAR(static_cast<double>(plain.optimizer), 8 * kParameters, 1e5);
  EXPECT_EQ(plain.adapters, 0);
  EXPECT_EQ(plain.process, 50'000'000);
  EXPECT_EQ(plain.bytes, plain.weights + plain.gradients + plain.optimizer + plain.activations +
                             plain.workspace + plain.process);
  // 2 C + 2 I + 2 Q + 2 K numbers a layer and token, and statistics of rows.
  EXPECT_NEAR(static_cast<double>(plain.activations),
              4.0 * 4096 * 24 * (2 * 896 + 2 * 4864 + 2 * 896 + 2 * 128 + 16), 1e6);
  const MemoryChoice& small =
      find(choices, LlamaRecompute::blocks, OptimizerMoments::bits8, DType::bf16, 4);
  EXPECT_NEAR(static_cast<double>(small.weights), 2 * kParameters, 1e6);
  EXPECT_NEAR(static_cast<double>(small.optimizer), 2.03 * kParameters, 5e6);
  EXPECT_EQ(small.gradients, plain.gradients);
  EXPECT_LT(small.bytes, 0.4 * static_cast<double>(plain.bytes));
}

TEST(MemoryChoices, MoreRecomputationTakesLessMemoryAndMoreTime) {
  const std::vector<MemoryChoice> choices = memory_choices(full_question(), kMachine);
  const MemoryChoice* before = nullptr;
  for (const LlamaRecompute level : kLlamaRecomputeLevels) {
    const MemoryChoice& choice = find(choices, level, OptimizerMoments::f32, DType::f32, 1);
    if (before != nullptr) {
      EXPECT_LT(choice.bytes, before->bytes);
    }
    if (level >= LlamaRecompute::attention) {
      EXPECT_GT(choice.seconds, before->seconds);
    }
    before = &choice;
  }
  // Blocks do the forward pass again, but for down and the head.
  const double none =
      find(choices, LlamaRecompute::none, OptimizerMoments::f32, DType::f32, 1).seconds;
  EXPECT_GT(before->seconds, 1.1 * none);
  EXPECT_LT(before->seconds, 1.34 * none);
}

TEST(MemoryChoices, TheBestIsTheFastestThatFitsAsExactAsMayBe) {
  const std::vector<MemoryChoice> choices = memory_choices(full_question(), kMachine);
  const auto best = [&](int64_t budget) { return best_choice(choices, budget); };
  const auto rich = best(std::numeric_limits<int64_t>::max());
  ASSERT_TRUE(rich);
  EXPECT_EQ(rich->weight_dtype, DType::f32);
  EXPECT_EQ(rich->moments, OptimizerMoments::f32);
  const MemoryChoice smallest = smallest_choice(choices);
  const auto poor = best(smallest.bytes);
  ASSERT_TRUE(poor);
  EXPECT_EQ(poor->flags(), smallest.flags());
  EXPECT_EQ(smallest.flags(), "--recompute blocks --optimizer adamw8bit --weight-dtype bf16");
  EXPECT_FALSE(best(smallest.bytes - 1));
  // More memory never makes it slower, and the proposal always fits.
  double last = std::numeric_limits<double>::infinity();
  for (int64_t budget = smallest.bytes; budget < 3 * smallest.bytes; budget += 300'000'000) {
    const auto choice = best(budget);
    ASSERT_TRUE(choice);
    EXPECT_LE(choice->bytes, budget);
    const int fewer = (choice->weight_dtype == DType::bf16 ? 1 : 0) +
                      (choice->moments == OptimizerMoments::bits8 ? 1 : 0);
    const double cost = choice->seconds * std::pow(1.25, fewer);
    EXPECT_LE(cost, 1.031 * last);
    last = std::min(last, cost);
  }
}

TEST(MemoryChoices, LoraTrainsLittle) {
  MemoryQuestion question = full_question();
  question.lora = LoraOptions{.rank = 32};
  const std::vector<MemoryChoice> choices = memory_choices(question, kMachine);
  const MemoryChoice& plain =
      find(choices, LlamaRecompute::norms, OptimizerMoments::f32, DType::f32, 1);
  EXPECT_NEAR(static_cast<double>(plain.adapters), 4 * 17'596'416.0, 1e5);
  EXPECT_EQ(plain.gradients, plain.adapters);
}

TEST(MemoryChoices, AdviceNamesFlagsOrTheSmallest) {
  MemoryQuestion question = full_question();
  EXPECT_THAT(memory_advice(question, int64_t{6} << 30), HasSubstr("--recompute "));
  const std::string none = memory_advice(question, 1'000'000'000);
  EXPECT_THAT(none, HasSubstr("nothing fits"));
  EXPECT_THAT(none, HasSubstr("--method lora"));
  question.sequence_length = 0;
  EXPECT_THROW(memory_choices(question, kMachine), InvalidArgument);
}

}  // namespace
}  // namespace flashloom
