#include "flashloom/models/llama/llama_flops.h"

#include <gtest/gtest.h>

namespace flashloom {
namespace {

/// Qwen2.5-0.5B.
ModelConfig qwen() {
  ModelConfig config;
  config.vocabulary_size = 151936;
  config.hidden_size = 896;
  config.intermediate_size = 4864;
  config.layers = 24;
  config.heads = 14;
  config.kv_heads = 2;
  config.head_dim = 64;
  return config;
}

constexpr double kLinears = 357'826'560;  // 24 layers of seven linears
constexpr double kHead = 136'134'656;
constexpr double kAdapters = 17'596'416;  // rank 32 on all seven

TEST(LlamaFlops, FullTrainingIsSixTimesTheMatrixParameters) {
  const double flops = llama_training_flops(qwen(), nullptr, {.tokens = 512, .loss_tokens = 512});
  EXPECT_DOUBLE_EQ(flops, 512 * 6 * (kLinears + kHead));
}

TEST(LlamaFlops, CausalAttentionCountsVisiblePairs) {
  // 3 passes x 4 x 24 layers x 14 heads x 64 x T (T + 1) / 2 = 129,024 T (T + 1).
  const double flops = llama_training_flops(qwen(), nullptr, {.visible_pairs = 512 * 513 / 2});
  EXPECT_DOUBLE_EQ(flops, 129'024.0 * 512 * 513);
}

TEST(LlamaFlops, FrozenWeightsHaveNoWeightGradient) {
  const LoraOptions lora = {.rank = 32};
  const double flops = llama_training_flops(qwen(), &lora, {.tokens = 100, .loss_tokens = 100});
  EXPECT_DOUBLE_EQ(flops, 100 * (4 * (kLinears + kHead) + 6 * kAdapters));
}

TEST(LlamaFlops, TheHeadIsPaidForLossBearingRowsOnly) {
  const double all = llama_forward_flops(qwen(), nullptr, {.tokens = 100, .loss_tokens = 100});
  const double some = llama_forward_flops(qwen(), nullptr, {.tokens = 100, .loss_tokens = 10});
  EXPECT_DOUBLE_EQ(all - some, 90 * 2 * kHead);
}

}  // namespace
}  // namespace flashloom
