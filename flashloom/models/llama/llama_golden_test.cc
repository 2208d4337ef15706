#include <gtest/gtest.h>

#include <cstring>

#include "flashloom/models/llama/llama_for_test.h"

namespace flashloom {
namespace {

// transformers ran in float64, we in float32: sums of up to 97 terms of either sign through two
// layers lose a few ulp (6e-8). Measured over all tensors: 1e-7 to 4e-6 of the largest value.
constexpr double kTolerance = 1e-5;

class LlamaGolden : public testing::TestWithParam<std::string> {
 protected:
  LlamaGolden() : golden_(open_golden(GetParam())), batch_(golden_batch(golden_)) {}

  TestModel open(const LlamaModel::Options& options) const {
    return TestModel(golden_folder(GetParam()), options);
  }

  std::vector<float> golden(const std::string& name) const { return to_vector(golden_.view(name)); }

  SafetensorsFile golden_;
  TestBatch batch_;
};

TEST_P(LlamaGolden, LogitsEqualTransformers) {
  const TestModel model = open({});
  EXPECT_LT(relative_error(logits_of(*model.model, batch_), golden("logits")), kTolerance);
}

TEST_P(LlamaGolden, LossesEqualTransformers) {
  const TestModel model = open({});
  const double loss = model->evaluate(batch_.view());
  EXPECT_NEAR(loss, golden("loss")[0], kTolerance * loss);
  EXPECT_LT(relative_error(to_vector(model->token_losses()), golden("losses")), kTolerance);
}

TEST_P(LlamaGolden, EveryGradientEqualsTransformers) {
  const TestModel model = open({.training = true});
  const double loss = model->loss_and_gradients(batch_.view(), batch_.gradient_scale());
  EXPECT_NEAR(loss, golden("loss")[0], kTolerance * loss);
  size_t count = 0;
  for (const Parameter& parameter : model->parameters()) {
    ASSERT_TRUE(parameter.trainable()) << parameter.name;
    EXPECT_LT(relative_error(to_vector(parameter.gradient), golden("gradient." + parameter.name)),
              kTolerance)
        << parameter.name;
    ++count;
  }
  for (const SafetensorsTensor& tensor : golden_.tensors()) {
    count -= tensor.name.starts_with("gradient.") ? 1 : 0;
  }
  EXPECT_EQ(count, 0u) << "parameters without a golden gradient, or gradients without a parameter";
}

TEST_P(LlamaGolden, EveryAdapterGradientEqualsPeft) {
  const TestModel model = open({.training = true, .lora = golden_lora(golden_)});
  size_t adapters = 0;
  for (const Parameter& parameter : model->parameters()) {
    if (parameter.role == ParameterRole::adapter_a || parameter.role == ParameterRole::adapter_b) {
      const std::vector<float> value = golden("lora." + parameter.name);
      ASSERT_EQ(value.size(), static_cast<size_t>(parameter.value.size()));
      std::memcpy(parameter.value.data, value.data(), value.size() * sizeof(float));
      ++adapters;
    }
  }
  const double loss = model->loss_and_gradients(batch_.view(), batch_.gradient_scale());
  EXPECT_NEAR(loss, golden("lora_loss")[0], kTolerance * loss);
  for (const Parameter& parameter : model->parameters()) {
    if (parameter.trainable()) {
      EXPECT_LT(
          relative_error(to_vector(parameter.gradient), golden("lora_gradient." + parameter.name)),
          kTolerance)
          << parameter.name;
      --adapters;
    }
  }
  EXPECT_EQ(adapters, 0u) << "adapters that are not trained, or weights that are";
  for (const SafetensorsTensor& tensor : golden_.tensors()) {
    if (tensor.name.starts_with("lora.")) {
      EXPECT_NE(model.find(tensor.name.substr(5)), nullptr) << tensor.name;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Kinds, LlamaGolden, testing::ValuesIn(golden_kinds()),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace flashloom
