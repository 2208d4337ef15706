#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/models/llama/llama_for_test.h"

namespace flashloom {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Throws;
using testing::ThrowsMessage;

/// Rounding of float32 through two layers, when the order of sums differs.
constexpr double kRounding = 5e-6;

TestBatch batch_of(const std::string& kind) {
  return golden_batch(open_golden(kind));
}

class LlamaKinds : public testing::TestWithParam<std::string> {
 protected:
  TestModel open(const LlamaModel::Options& options) const {
    return TestModel(golden_folder(GetParam()), options);
  }

  const TestBatch batch_ = batch_of(GetParam());
};

INSTANTIATE_TEST_SUITE_P(Kinds, LlamaKinds, testing::ValuesIn(golden_kinds()),
                         [](const auto& test) { return test.param; });

TEST_P(LlamaKinds, PackedDocumentsEqualEachAlone) {
  const TestModel packed = open({.training = true});
  const TestModel alone = open({.training = true});
  const double loss = packed->loss_and_gradients(batch_.view(), batch_.gradient_scale());
  const std::vector<float> losses = to_vector(packed->token_losses());
  double sum = 0;
  std::vector<float> alone_losses;
  for (int64_t d = 0; d < batch_.documents(); ++d) {
    sum += alone->loss_and_gradients(batch_.part(d, d + 1).view(), batch_.gradient_scale());
    const std::vector<float> part = to_vector(alone->token_losses());
    alone_losses.insert(alone_losses.end(), part.begin(), part.end());
  }
  EXPECT_NEAR(loss, sum, kRounding * sum);
  EXPECT_LT(relative_error(losses, alone_losses), kRounding);
  EXPECT_LT(relative_error(packed.gradients(), alone.gradients()), kRounding);
}

TEST_P(LlamaKinds, ADocumentDoesNotSeeItsNeighbour) {
  const TestModel model = open({});
  TestBatch changed = batch_;
  const auto border = static_cast<size_t>(batch_.cu_seqlens[1]);
  for (size_t t = 0; t < border; ++t) {
    changed.tokens[t] = (changed.tokens[t] + 41) % 97;
  }
  model->evaluate(batch_.view());
  const std::vector<float> before = to_vector(model->token_losses());
  model->evaluate(changed.view());
  const std::vector<float> after = to_vector(model->token_losses());
  EXPECT_NE(std::vector(before.begin(), before.begin() + static_cast<int64_t>(border)),
            std::vector(after.begin(), after.begin() + static_cast<int64_t>(border)));
  EXPECT_EQ(std::vector(before.begin() + static_cast<int64_t>(border), before.end()),
            std::vector(after.begin() + static_cast<int64_t>(border), after.end()));
}

TEST_P(LlamaKinds, GradientsHaveTheSameBitsForAnyNumberOfThreads) {
  for (const bool lora : {false, true}) {
    std::vector<float> first;
    for (const int threads : {1, 2, 5}) {
      set_thread_count(threads);
      const TestModel model =
          open({.training = true,
                .lora = lora ? std::optional<LoraOptions>(LoraOptions{.rank = 4}) : std::nullopt});
      model.randomize_adapters(3);
      model->loss_and_gradients(batch_.view(), batch_.gradient_scale());
      if (first.empty()) {
        first = model.gradients();
      }
      EXPECT_EQ(model.gradients(), first) << threads << " threads";
    }
  }
  set_thread_count(0);
}

TEST_P(LlamaKinds, GradientsHaveTheSameBitsAtEveryLevelOfRecomputation) {
  for (const bool lora : {false, true}) {
    for (const int threads : {1, 3}) {
      set_thread_count(threads);
      std::vector<float> kept, kept_losses;
      int64_t last_bytes = 0;
      for (const LlamaRecompute level : kLlamaRecomputeLevels) {
        const TestModel model =
            open({.training = true,
                  .lora = lora ? std::optional<LoraOptions>(LoraOptions{.rank = 4}) : std::nullopt,
                  .recompute = level});
        model.randomize_adapters(3);
        // Two micro-batches: what one leaves in shared buffers must not matter to the next.
        model->loss_and_gradients(batch_.part(1, 3).view(), batch_.gradient_scale());
        model->evaluate(batch_.view());
        model->loss_and_gradients(batch_.view(), batch_.gradient_scale());
        const int64_t bytes = model.plan.kind_bytes(MemoryKind::activations);
        if (level == LlamaRecompute::none) {
          kept = model.gradients();
          kept_losses = to_vector(model->token_losses());
        } else {
          EXPECT_LT(bytes, last_bytes) << llama_recompute_name(level);
        }
        last_bytes = bytes;
        EXPECT_EQ(model.gradients(), kept) << llama_recompute_name(level) << ", lora " << lora;
        EXPECT_EQ(to_vector(model->token_losses()), kept_losses);
      }
    }
  }
  set_thread_count(0);
}

TEST_P(LlamaKinds, KeepsOfALayerWhatTheLevelSays) {
  const ModelConfig config = ModelFiles::open(golden_folder(GetParam())).config();
  const auto bytes_of_a_layer = [&](LlamaRecompute level) {
    const auto bytes = [&](int64_t layers) {
      ModelConfig deep = config;
      deep.layers = layers;
      MemoryPlan plan;
      const LlamaModel model(deep, {.training = true, .recompute = level, .max_tokens = 64}, plan);
      return plan.kind_bytes(MemoryKind::activations);
    };
    return bytes(9) - bytes(8);
  };
  const int64_t hidden = config.hidden_size;
  const int64_t qk = (config.heads + config.kv_heads) * config.head_dim;
  const int64_t heads = config.heads * (config.qk_norm ? 2 : 1);
  const int64_t kv_heads = config.qk_norm ? config.kv_heads : 0;
  const int64_t attention = 2 * qk + (config.qk_norm ? qk : 0) + heads + kv_heads;
  const int64_t ffn = config.intermediate_size;
  const int64_t row = 64 * 4;
  EXPECT_EQ(bytes_of_a_layer(LlamaRecompute::none), row * (4 * hidden + 3 * ffn + attention + 2));
  EXPECT_EQ(bytes_of_a_layer(LlamaRecompute::norms), row * (2 * hidden + 2 * ffn + attention + 2));
  EXPECT_EQ(bytes_of_a_layer(LlamaRecompute::attention), row * (2 * hidden + 2 * ffn + 2));
  EXPECT_EQ(bytes_of_a_layer(LlamaRecompute::blocks), row * hidden);
}

TEST_P(LlamaKinds, Bf16StorageComputesAsItsNumbersInF32) {
  for (const bool lora : {false, true}) {
    const LlamaModel::Options options = {
        .training = true,
        .lora = lora ? std::optional<LoraOptions>(LoraOptions{.rank = 4}) : std::nullopt};
    LlamaModel::Options stored = options;
    stored.weight_dtype = DType::bf16;
    const TestModel half = open(stored);
    const TestModel model = open(options);
    for (const Parameter& parameter : half->parameters()) {
      const bool adapter =
          parameter.role == ParameterRole::adapter_a || parameter.role == ParameterRole::adapter_b;
      if (parameter.value.rank == 2 && !adapter) {
        ASSERT_EQ(parameter.value.dtype, DType::bf16) << parameter.name;
        float* numbers = model.find(parameter.name)->value.as<float>();
        for (int64_t i = 0; i < parameter.value.size(); ++i) {
          numbers[i] = static_cast<float>(parameter.value.as<bf16>()[i]);
        }
      } else {
        ASSERT_EQ(parameter.value.dtype, DType::f32) << parameter.name;
      }
    }
    EXPECT_LT(half.plan.kind_bytes(MemoryKind::weights),
              0.52 * static_cast<double>(model.plan.kind_bytes(MemoryKind::weights)) + 20000);
    half.randomize_adapters(3);
    model.randomize_adapters(3);
    half->loss_and_gradients(batch_.view(), batch_.gradient_scale());
    model->loss_and_gradients(batch_.view(), batch_.gradient_scale());
    EXPECT_EQ(to_vector(half->token_losses()), to_vector(model->token_losses()));
    EXPECT_EQ(half.gradients(), model.gradients());
  }
}

TEST_P(LlamaKinds, ParametersHaveTheirShapesBeforeThereIsMemory) {
  const TestModel bound = open({.training = true, .lora = LoraOptions{.rank = 4}});
  MemoryPlan plan;
  const LlamaModel model(bound->config(), {.training = true, .lora = LoraOptions{.rank = 4}}, plan);
  ASSERT_EQ(model.parameters().size(), bound->parameters().size());
  for (size_t i = 0; i < model.parameters().size(); ++i) {
    const Parameter& parameter = model.parameters()[i];
    EXPECT_EQ(parameter.name, bound->parameters()[i].name);
    EXPECT_EQ(describe(parameter.value), describe(bound->parameters()[i].value));
    EXPECT_EQ(parameter.trainable(), bound->parameters()[i].trainable());
    EXPECT_EQ(parameter.value.data, nullptr);
  }
}

TEST_P(LlamaKinds, GradientsOfMicroBatchesAddUp) {
  const TestModel whole = open({.training = true});
  const TestModel split = open({.training = true});
  const double loss = whole->loss_and_gradients(batch_.view(), batch_.gradient_scale());
  double sum = split->loss_and_gradients(batch_.part(0, 1).view(), batch_.gradient_scale());
  sum += split->loss_and_gradients(batch_.part(1, 3).view(), batch_.gradient_scale());
  EXPECT_NEAR(loss, sum, kRounding * loss);
  EXPECT_LT(relative_error(split.gradients(), whole.gradients()), kRounding);

  split->zero_gradients();
  for (const float value : split.gradients()) {
    ASSERT_EQ(value, 0);
  }
}

TEST_P(LlamaKinds, EvaluationIsTheForwardPassOfTraining) {
  const TestModel training = open({.training = true, .lora = LoraOptions{.rank = 4}});
  const TestModel inference = open({.lora = LoraOptions{.rank = 4}});
  training.randomize_adapters(7);
  inference.randomize_adapters(7);
  const double loss = training->loss_and_gradients(batch_.view(), batch_.gradient_scale());
  const std::vector<float> losses = to_vector(training->token_losses());
  EXPECT_EQ(training->evaluate(batch_.view()), loss);
  EXPECT_EQ(inference->evaluate(batch_.view()), loss);
  EXPECT_EQ(to_vector(inference->token_losses()), losses);
}

TEST_P(LlamaKinds, FreshAdaptersChangeNothing) {
  const TestModel plain = open({});
  const TestModel adapted = open({.lora = LoraOptions{.rank = 8}});
  adapted->initialize_adapters(1);
  EXPECT_EQ(logits_of(*adapted.model, batch_), logits_of(*plain.model, batch_));
}

TEST_P(LlamaKinds, AdaptersThatReadTheSameInputAreRowsOfOneTensor) {
  // So the op multiplies them with it in one pass.
  const TestModel model = open({.training = true, .lora = LoraOptions{.rank = 4}});
  const std::array<std::pair<std::string, std::string>, 3> neighbours = {
      {{"q_proj", "k_proj"}, {"k_proj", "v_proj"}, {"gate_proj", "up_proj"}}};
  for (const std::string layer : {"0.", "1."}) {
    for (const auto& [first, second] : neighbours) {
      const auto find = [&](const std::string& name) {
        const std::string block = name == "gate_proj" || name == "up_proj" ? "mlp." : "self_attn.";
        return model.find("base_model.model.model.layers." + layer + block + name +
                          ".lora_A.weight");
      };
      const Parameter* a = find(first);
      const Parameter* b = find(second);
      ASSERT_TRUE(a != nullptr && b != nullptr) << first << " " << second;
      EXPECT_EQ(a->value.as<float>() + a->value.size(), b->value.as<float>());
      EXPECT_EQ(a->gradient.as<float>() + a->gradient.size(), b->gradient.as<float>());
    }
  }
}

TEST_P(LlamaKinds, MergedAdaptersAnswerAsBefore) {
  const TestModel plain = open({});
  const TestModel model = open({.lora = LoraOptions{.rank = 4, .alpha = 12}});
  model.randomize_adapters(5);
  const std::vector<float> adapted = logits_of(*model.model, batch_);
  EXPECT_GT(relative_error(adapted, logits_of(*plain.model, batch_)), 0.05);
  model->merge_adapters();
  EXPECT_LT(relative_error(logits_of(*model.model, batch_), adapted), kRounding);
}

TEST_P(LlamaKinds, AdaptersOfAnySubsetHaveTheGradientsOfAll) {
  // With B zero elsewhere, an adapter's gradient does not depend on which others exist.
  const TestModel all = open({.training = true, .lora = LoraOptions{.rank = 4}});
  all->initialize_adapters(2);
  all->loss_and_gradients(batch_.view(), batch_.gradient_scale());
  for (size_t i = 0; i < kLlamaLinears; ++i) {
    LoraOptions options = {.rank = 4};
    options.targets.fill(false);
    options.targets[i] = true;
    const TestModel one = open({.training = true, .lora = options});
    size_t trained = 0;
    for (const Parameter& parameter : one->parameters()) {
      if (parameter.trainable()) {
        const Parameter* same = all.find(parameter.name);
        ASSERT_NE(same, nullptr);
        std::memcpy(parameter.value.data, same->value.data,
                    static_cast<size_t>(parameter.value.bytes()));
        ++trained;
      }
    }
    EXPECT_EQ(trained, 4u);  // A and B in two layers
    one->loss_and_gradients(batch_.view(), batch_.gradient_scale());
    for (const Parameter& parameter : one->parameters()) {
      if (parameter.role == ParameterRole::adapter_b) {
        EXPECT_LT(relative_error(to_vector(parameter.gradient),
                                 to_vector(all.find(parameter.name)->gradient)),
                  kRounding)
            << parameter.name;
      }
    }
  }
}

TEST(LlamaAdapters, AreDrawnFromTheSeedWithinTheirBound) {
  const TestModel model(golden_folder("smollm2"), {.lora = LoraOptions{.rank = 4}});
  const TestModel again(golden_folder("smollm2"), {.lora = LoraOptions{.rank = 4}});
  const TestModel other(golden_folder("smollm2"), {.lora = LoraOptions{.rank = 4}});
  model->initialize_adapters(9);
  again->initialize_adapters(9);
  other->initialize_adapters(10);
  const std::string name = "base_model.model.model.layers.1.mlp.down_proj.lora_A.weight";
  const std::vector<float> a = to_vector(model.find(name)->value);
  EXPECT_EQ(a, to_vector(again.find(name)->value));
  EXPECT_NE(a, to_vector(other.find(name)->value));
  const float bound = 1 / std::sqrt(56.0f);
  EXPECT_LE(*std::max_element(a.begin(), a.end()), bound);
  EXPECT_GE(*std::min_element(a.begin(), a.end()), -bound);
  EXPECT_GT(*std::max_element(a.begin(), a.end()), 0.9f * bound);
}

TEST(LlamaAdapters, NameTheirTargets) {
  const std::vector<std::string> names = {"q_proj", "down"};
  const auto targets = parse_lora_targets(names);
  EXPECT_EQ(targets,
            (std::array<bool, kLlamaLinears>{true, false, false, false, false, false, true}));
  const std::vector<std::string> wrong = {"lm_head"};
  EXPECT_THAT([&] { parse_lora_targets(wrong); },
              ThrowsMessage<InvalidArgument>(AllOf(HasSubstr("q_proj"), HasSubstr("lm_head"))));
  EXPECT_THROW(parse_lora_targets({}), InvalidArgument);
}

TEST(LlamaAdapters, RejectASenselessSize) {
  MemoryPlan plan;
  const ModelConfig config = ModelFiles::open(golden_folder("llama2")).config();
  EXPECT_THROW(LlamaModel(config, {.lora = LoraOptions{.rank = 0}}, plan), InvalidArgument);
  EXPECT_THROW(LlamaModel(config, {.lora = LoraOptions{.alpha = -1}}, plan), InvalidArgument);
}

TEST(LlamaModel, TiedEmbeddingsAreOneTensor) {
  const TestModel tied(golden_folder("smollm2"), {.training = true});
  EXPECT_EQ(tied.find("lm_head.weight"), nullptr);
  EXPECT_EQ(tied->weights().values().head.data, tied->weights().values().embedding.data);
  const TestModel untied(golden_folder("llama2"), {.training = true});
  EXPECT_NE(untied.find("lm_head.weight"), nullptr);
}

TEST(LlamaModel, ParametersAreTheConfigsCount) {
  for (const std::string& kind : golden_kinds()) {
    const TestModel model(golden_folder(kind), {});
    int64_t count = 0;
    for (const Parameter& parameter : model->parameters()) {
      count += parameter.value.size();
    }
    EXPECT_EQ(count, parameter_count(model->config())) << kind;
  }
}

TEST(LlamaModel, RejectsATokenOutsideTheVocabulary) {
  const TestModel model(golden_folder("llama2"), {});
  TestBatch batch = batch_of("llama2");
  batch.tokens[3] = 97;
  EXPECT_THAT([&] { model->evaluate(batch.view()); },
              ThrowsMessage<InvalidArgument>(AllOf(HasSubstr("97"), HasSubstr("3"))));
  batch = batch_of("llama2");
  batch.labels[2] = 97;
  EXPECT_THAT([&] { model->evaluate(batch.view()); },
              ThrowsMessage<InvalidArgument>(HasSubstr("97")));
}

TEST(LlamaModel, RejectsAMalformedBatch) {
  const TestModel model(golden_folder("llama2"), {.max_tokens = 26, .max_sequence_length = 14});
  const TestBatch good = batch_of("llama2");
  EXPECT_GT(model->evaluate(good.view()), 0);
  const auto rejects = [&](auto change, const std::string& argument) {
    TestBatch batch = good;
    change(batch);
    EXPECT_THAT([&] { model->evaluate(batch.view()); },
                ThrowsMessage<InvalidArgument>(HasSubstr(argument)));
  };
  rejects([](TestBatch& b) { b.add({1}, {2}); }, "tokens");
  rejects([](TestBatch& b) { b.positions.pop_back(); }, "positions");
  rejects([](TestBatch& b) { b.labels.pop_back(); }, "labels");
  rejects([](TestBatch& b) { b.cu_seqlens.back() = 25; }, "cu_seqlens");
  rejects([](TestBatch& b) { b.cu_seqlens[1] = 30; }, "cu_seqlens");
  rejects([](TestBatch& b) { b.max_length = 12; }, "cu_seqlens");
  rejects([](TestBatch& b) { b.max_length = 15; }, "max_length");
}

TEST(LlamaModel, RecomputationHasNames) {
  for (const LlamaRecompute level : kLlamaRecomputeLevels) {
    EXPECT_EQ(parse_llama_recompute(llama_recompute_name(level)), level);
  }
  EXPECT_THAT([] { parse_llama_recompute("all"); },
              ThrowsMessage<InvalidArgument>(AllOf(HasSubstr("blocks"), HasSubstr("all"))));
}

TEST(LlamaModel, TrainsOnlyIfPlannedForIt) {
  const TestModel model(golden_folder("llama2"), {});
  EXPECT_THAT([&] { model->loss_and_gradients(batch_of("llama2").view(), 1); },
              Throws<InvalidArgument>());
}

TEST(LlamaModel, PlansForOneLongDocumentAsForManyShortOnes) {
  const TestModel model(golden_folder("smollm2"),
                        {.training = true, .max_tokens = 1024, .max_sequences = 64});
  TestBatch one;
  one.add(std::vector<int32_t>(1024, 5), std::vector<int32_t>(1024, 6));
  EXPECT_GT(model->loss_and_gradients(one.view(), one.gradient_scale()), 0);
  TestBatch many;
  for (int i = 0; i < 64; ++i) {
    many.add(std::vector<int32_t>(16, 5), std::vector<int32_t>(16, 6));
  }
  EXPECT_GT(model->loss_and_gradients(many.view(), many.gradient_scale()), 0);
}

}  // namespace
}  // namespace flashloom
