#include "flashloom/train/fine_tune.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/core/philox.h"
#include "flashloom/io/temporary_directory_for_test.h"

namespace flashloom {
namespace {

constexpr int64_t kAnyMemory = std::numeric_limits<int64_t>::max();

class FineTuneTest : public testing::Test {
 protected:
  FineTuneTest() {
    RandomSequence random(3, RandomStream::test);
    for (int i = 0; i < 40; ++i) {
      std::vector<int32_t> tokens(8 + static_cast<size_t>(i) % 17);
      for (int32_t& token : tokens) {
        token = static_cast<int32_t>(random.bits() % 64);
      }
      documents_.add(tokens, std::vector<uint8_t>(tokens.size(), 1));
    }
  }

  FineTune plan(int64_t memory, LlamaRecompute recompute = LlamaRecompute::norms) {
    return FineTune(bundle_, documents_, nullptr,
                    {.output = folder_ / std::to_string(++runs_),
                     .recompute = recompute,
                     .optimizer = {.learning_rate = 1e-3},
                     .steps = 1,
                     .batch_tokens = 256},
                    memory);
  }

  TemporaryDirectory folder_;
  int runs_ = 0;
  const std::string golden_ = FLASHLOOM_SOURCE_DIR "/tests/golden/";
  const ModelBundle bundle_ = {
      .path = golden_ + "models/smollm2",
      .files = ModelFiles::open(golden_ + "models/smollm2"),
      .tokenizer = Tokenizer::from_json(read_for_test(golden_ + "text/tokenizer_smollm2.json"),
                                        "tokenizer_smollm2.json")};
  TokenDocuments documents_;
};

TEST_F(FineTuneTest, TakesAStepAsOneMicroBatchIfMemoryAllows) {
  const FineTune run = plan(kAnyMemory);
  EXPECT_EQ(run.step_shape().bin_capacity, 256);
  EXPECT_EQ(run.step_shape().bins_per_step, 1);
}

TEST_F(FineTuneTest, CutsAStepIntoTheFewestMicroBatchesThatFit) {
  const int64_t whole = plan(kAnyMemory).planned_bytes();
  const FineTune exact = plan(whole);
  EXPECT_EQ(exact.step_shape().bins_per_step, 1);
  const FineTune halved = plan(whole - 1);
  EXPECT_EQ(halved.step_shape().bins_per_step, 2);
  EXPECT_EQ(halved.step_shape().bin_capacity, 128);
  EXPECT_LT(halved.planned_bytes(), whole);
}

TEST_F(FineTuneTest, TakesNoMoreAtOnceThanAskedFor) {
  const auto shape = [&](int64_t most) {
    return FineTune(bundle_, documents_, nullptr,
                    {.output = folder_ / std::to_string(++runs_),
                     .steps = 1,
                     .batch_tokens = 256,
                     .micro_batch_tokens = most},
                    kAnyMemory)
        .step_shape();
  };
  EXPECT_EQ(shape(64).bin_capacity, 64);
  EXPECT_EQ(shape(64).bins_per_step, 4);
  EXPECT_EQ(shape(100).bins_per_step, 3);
  EXPECT_EQ(shape(1000).bins_per_step, 1);
  EXPECT_EQ(shape(5).bin_capacity, 24);  // the longest document
  EXPECT_THROW(shape(-1), InvalidArgument);
}

TEST_F(FineTuneTest, NamesTheOpThatMakesAGradientThatIsNotFinite) {
  FineTune run(bundle_, documents_, nullptr,
               {.output = folder_ / "run",
                .lora = std::nullopt,
                .steps = 1,
                .batch_tokens = 256,
                .guards = false},
               kAnyMemory);
  // Huge times tiny is as it was forward, but not backward; steep logits make gradients large.
  for (const Parameter& parameter : run.model().parameters()) {
    const float factor = parameter.name == "model.layers.1.mlp.up_proj.weight"     ? 1e-35f
                         : parameter.name == "model.layers.1.mlp.down_proj.weight" ? 1e35f
                         : parameter.name == "model.norm.weight"                   ? 1e6f
                                                                                   : 1;
    float* values = parameter.value.as<float>();
    std::transform(values, values + parameter.value.size(), values,
                   [&](float x) { return x * factor; });
  }
  EXPECT_THAT([&] { run.run({}); },
              testing::ThrowsMessage<Error>(testing::AllOf(
                  testing::HasSubstr("the gradient of model."),
                  testing::HasSubstr("is not finite in step 1, first in layer 1: the gradients of "
                                     "down_proj;"))));
}

TEST_F(FineTuneTest, RecomputationMakesRoomForLargerMicroBatches) {
  const int64_t whole = plan(kAnyMemory, LlamaRecompute::blocks).planned_bytes();
  EXPECT_EQ(plan(whole, LlamaRecompute::blocks).step_shape().bins_per_step, 1);
  EXPECT_EQ(plan(whole, LlamaRecompute::none).step_shape().bins_per_step, 2);
}

TEST_F(FineTuneTest, RefusesMemoryThatDoesNotHoldTheLongestDocument) {
  EXPECT_THAT([&] { plan(1 << 14); },
              testing::ThrowsMessage<OutOfMemory>(testing::HasSubstr("weights")));
}

}  // namespace
}  // namespace flashloom
