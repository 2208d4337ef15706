#include <gtest/gtest.h>

#include <cstring>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/models/llama/llama_for_test.h"
#include "flashloom/models/llama/llama_generator.h"

namespace flashloom {
namespace {

// A tiny Llama whose linears are Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K and Q6_K
// (tools/make_qlora_golden.py).
class LlamaQlora : public testing::Test {
 protected:
  LlamaQlora()
      : golden_(open_golden("qlora")),
        batch_(golden_batch(golden_)),
        path_(golden_folder("qlora") + "/model.gguf"),
        blocks_(llama_block_formats(ModelFiles::open(path_))) {}

  TestModel open(bool blocks, bool training = true) const {
    LlamaModel::Options options = {.training = training, .lora = golden_lora(golden_)};
    if (blocks) {
      options.blocks = blocks_;
    }
    TestModel model(path_, options);
    for (const Parameter& parameter : model->parameters()) {
      if (is_adapter(parameter.role)) {
        const std::vector<float> value = to_vector(golden_.view("lora." + parameter.name));
        std::memcpy(parameter.value.data, value.data(), value.size() * sizeof(float));
      }
    }
    return model;
  }

  SafetensorsFile golden_;
  TestBatch batch_;
  std::string path_;
  LlamaBlockFormats blocks_;
};

TEST_F(LlamaQlora, LossAndGradientsEqualPeft) {
  const TestModel model = open(true);
  const double loss = model->loss_and_gradients(batch_.view(), batch_.gradient_scale());
  // As LlamaGolden's: float32 against float64.
  constexpr double kTolerance = 1e-5;
  const double expected = golden_.view("loss").as<float>()[0];
  EXPECT_NEAR(loss, expected, kTolerance * expected);
  size_t trained = 0;
  for (const Parameter& parameter : model->parameters()) {
    if (parameter.trainable()) {
      EXPECT_LT(relative_error(to_vector(parameter.gradient),
                               to_vector(golden_.view("gradient." + parameter.name))),
                kTolerance)
          << parameter.name;
      ++trained;
    }
  }
  EXPECT_EQ(trained, 2u * 2 * kLlamaLinears);
}

TEST_F(LlamaQlora, GivesTheBitsOfLoraOnTheDecodedWeights) {
  const TestModel blocks = open(true);
  const TestModel plain = open(false);
  EXPECT_EQ(blocks->loss_and_gradients(batch_.view(), 1),
            plain->loss_and_gradients(batch_.view(), 1));
  EXPECT_EQ(blocks.gradients(), plain.gradients());
  EXPECT_EQ(blocks->evaluate(batch_.view()), plain->evaluate(batch_.view()));
}

TEST_F(LlamaQlora, GivesTheSameBitsForAnyNumberOfThreads) {
  std::vector<float> first;
  for (const int threads : {1, 3}) {
    set_thread_count(threads);
    const TestModel model = open(true);
    model->loss_and_gradients(batch_.view(), 1);
    const std::vector<float> gradients = model.gradients();
    if (first.empty()) {
      first = gradients;
    }
    EXPECT_EQ(gradients, first) << threads;
  }
  set_thread_count(0);
}

TEST_F(LlamaQlora, PlansTheBytesOfTheBlocks) {
  const TestModel model = open(true);
  // F16 is no block type: it is decoded, as norms and the embedding are.
  EXPECT_EQ(blocks_[1][static_cast<size_t>(LlamaLinear::v)], nullptr);
  const LlamaLayerWeights& layer = model->weights().values().layers[1];
  EXPECT_TRUE(layer.linear[static_cast<size_t>(LlamaLinear::v)]);
  EXPECT_FALSE(layer.linear[static_cast<size_t>(LlamaLinear::q)]);
  EXPECT_EQ(layer.blocks[static_cast<size_t>(LlamaLinear::q)].format->name, "Q8_0");
  int64_t stored = 0;
  const ModelFiles files = ModelFiles::open(path_);
  for (const ModelTensor& tensor : files.tensors()) {
    const bool blocked = files.block_format(tensor.name) != nullptr;
    stored += blocked                       ? tensor.stored_bytes
              : tensor.stored_type == "F16" ? 2 * tensor.stored_bytes
                                            : tensor.stored_bytes;
  }
  // Buffers begin at multiples of 64 bytes.
  EXPECT_GE(model.plan.kind_bytes(MemoryKind::weights), stored);
  EXPECT_LE(model.plan.kind_bytes(MemoryKind::weights), stored + 64 * 30);
  EXPECT_LT(model.plan.kind_bytes(MemoryKind::weights),
            open(false).plan.kind_bytes(MemoryKind::weights) / 3);
}

TEST_F(LlamaQlora, GeneratesAsWithDecodedWeights) {
  const std::vector<int32_t> tokens = {5, 17, 3, 80, 42};
  const auto generate = [&](bool blocks) {
    const ModelFiles files = ModelFiles::open(path_);
    MemoryPlan plan;
    LlamaModel::Options options = {.max_tokens = 8};
    if (blocks) {
      options.blocks = blocks_;
    }
    LlamaModel model(files.config(), options, plan);
    LlamaGenerator generator(model, {.capacity = 16}, plan);
    const Arena arena(plan);
    model.bind(arena);
    model.load(files);
    generator.bind(arena);
    generator.append(tokens);
    const std::vector<int32_t> next = {9};
    return to_vector(generator.append(next));
  };
  EXPECT_LT(relative_error(generate(true), generate(false)), 1e-5);
}

TEST_F(LlamaQlora, RefusesToTrainOrMergeBlocks) {
  const ModelFiles files = ModelFiles::open(path_);
  MemoryPlan plan;
  EXPECT_THROW(
      LlamaModel(files.config(), {.training = true, .blocks = blocks_, .max_tokens = 8}, plan),
      InvalidArgument);
  const TestModel model = open(true);
  EXPECT_THROW(model->merge_adapters(), InvalidArgument);
  EXPECT_TRUE(llama_block_formats(ModelFiles::open(golden_folder("smollm2"))).empty());
}

}  // namespace
}  // namespace flashloom
