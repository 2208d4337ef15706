#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "flashloom/core/parallel.h"
#include "flashloom/io/temporary_directory_for_test.h"
#include "flashloom/models/llama/llama_for_test.h"
#include "flashloom/train/adapter_files.h"

namespace flashloom {
namespace {

// As LlamaGolden's: float32 against float64.
constexpr double kTolerance = 1e-5;

// peft's adapters and what it says of them (tools/make_dora_golden.py).
class Dora : public testing::TestWithParam<std::string> {
 protected:
  Dora()
      : adapter_(golden_folder(GetParam()) + "/dora"),
        golden_(adapter_ + "/golden.safetensors"),
        batch_(golden_batch(open_golden(GetParam()))) {}

  TestModel open(LlamaModel::Options options = {}) const {
    options.lora = read_adapter_options(adapter_);
    TestModel model(golden_folder(GetParam()), options);
    load_adapter(adapter_, *model.model);
    return model;
  }

  std::vector<float> golden(const std::string& name) const { return to_vector(golden_.view(name)); }

  std::string adapter_;
  SafetensorsFile golden_;
  TestBatch batch_;
};

TEST_P(Dora, LogitsAndLossEqualPeft) {
  const TestModel model = open();
  EXPECT_LT(relative_error(logits_of(*model.model, batch_), golden("logits")), kTolerance);
  const double loss = model->evaluate(batch_.view());
  EXPECT_NEAR(loss, golden("loss")[0], kTolerance * loss);
}

TEST_P(Dora, EveryGradientEqualsPeft) {
  for (const LlamaRecompute recompute : {LlamaRecompute::none, LlamaRecompute::blocks}) {
    const TestModel model = open({.training = true, .recompute = recompute});
    const double loss = model->loss_and_gradients(batch_.view(), batch_.gradient_scale());
    EXPECT_NEAR(loss, golden("loss")[0], kTolerance * loss);
    size_t trained = 0;
    for (const Parameter& parameter : model->parameters()) {
      if (parameter.trainable()) {
        EXPECT_LT(
            relative_error(to_vector(parameter.gradient), golden("gradient." + parameter.name)),
            kTolerance)
            << parameter.name;
        ++trained;
      }
    }
    size_t expected = 0;
    for (const SafetensorsTensor& tensor : golden_.tensors()) {
      expected += tensor.name.starts_with("gradient.") ? 1 : 0;
    }
    EXPECT_EQ(trained, expected);
    EXPECT_EQ(llama_trainable_size(model->config(), model->options().lora),
              static_cast<int64_t>(model.gradients().size()));
  }
}

TEST_P(Dora, MergedWeightsEqualPefts) {
  const TestModel model = open();
  const std::vector<float> before = logits_of(*model.model, batch_);
  model->merge_adapters();
  EXPECT_LT(relative_error(logits_of(*model.model, batch_), before), kTolerance);
  size_t merged = 0;
  for (const SafetensorsTensor& tensor : golden_.tensors()) {
    if (tensor.name.starts_with("merged.")) {
      const Parameter* weight = model.find(tensor.name.substr(7));
      ASSERT_NE(weight, nullptr) << tensor.name;
      EXPECT_LT(relative_error(to_vector(weight->value), golden(tensor.name)), 1e-6) << tensor.name;
      ++merged;
    }
  }
  EXPECT_GT(merged, 0u);
}

TEST_P(Dora, IsSavedAsItWasRead) {
  const TestModel model = open();
  const TemporaryDirectory folder;
  save_adapter(folder.path(), *model.model, "base");
  EXPECT_TRUE(read_adapter_options(folder.path()).dora);
  const SafetensorsFile saved(folder / "adapter_model.safetensors");
  const SafetensorsFile original(adapter_ + "/adapter_model.safetensors");
  ASSERT_EQ(saved.tensors().size(), original.tensors().size());
  for (const SafetensorsTensor& tensor : original.tensors()) {
    EXPECT_EQ(to_vector(saved.view(tensor.name)), to_vector(original.view(tensor.name)))
        << tensor.name;
  }
}

TEST_P(Dora, BeginsAsTheModelItself) {
  const TestModel plain(golden_folder(GetParam()), {});
  const TestModel fresh(golden_folder(GetParam()),
                        {.lora = LoraOptions{.rank = 4, .alpha = 8, .dora = true}});
  fresh->initialize_adapters(7);
  EXPECT_LT(relative_error(logits_of(*fresh.model, batch_), logits_of(*plain.model, batch_)), 1e-6);
}

TEST_P(Dora, GivesTheSameBitsForAnyNumberOfThreads) {
  std::vector<float> first;
  for (const int threads : {1, 3}) {
    set_thread_count(threads);
    const TestModel model = open({.training = true});
    model->loss_and_gradients(batch_.view(), 1);
    const std::vector<float> gradients = model.gradients();
    if (first.empty()) {
      first = gradients;
    }
    EXPECT_EQ(gradients, first) << threads;
  }
  set_thread_count(0);
}

INSTANTIATE_TEST_SUITE_P(Kinds, Dora, testing::Values("llama2", "qwen2", "qwen3"),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace flashloom
