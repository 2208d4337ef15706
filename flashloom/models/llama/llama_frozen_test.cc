#include "flashloom/models/llama/llama_frozen.h"

#include <fnmatch.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "flashloom/core/error.h"
#include "flashloom/models/llama/llama_flops.h"
#include "flashloom/models/llama/llama_for_test.h"

namespace flashloom {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

ModelConfig config_of(const std::string& kind) {
  return ModelFiles::open(golden_folder(kind)).config();
}

int64_t trained_numbers(const TestModel& model) {
  int64_t count = 0;
  for (const Parameter& parameter : model->parameters()) {
    count += parameter.trainable() ? parameter.value.size() : 0;
  }
  return count;
}

// The pattern as the C library has it; none of the test's has brackets.
bool matches_as_file_names(const std::string& pattern, const std::string& name) {
  return fnmatch(pattern.c_str(), name.c_str(), FNM_NOESCAPE) == 0;
}

class Freezing : public testing::TestWithParam<std::string> {};

INSTANTIATE_TEST_SUITE_P(Kinds, Freezing, testing::ValuesIn(golden_kinds()),
                         [](const auto& test) { return test.param; });

// A frozen head's loss and a frozen layer's linears are computed by other kernels: rounding
// differs.
constexpr double kRounding = 5e-6;

TEST_P(Freezing, LeavesTheOtherGradientsAsTheyAre) {
  const std::string folder = golden_folder(GetParam());
  const TestBatch batch = golden_batch(open_golden(GetParam()));
  const TestModel all(folder, {.training = true});
  all->loss_and_gradients(batch.view(), batch.gradient_scale());
  std::vector<std::vector<std::string>> cases = {
      {"0"},
      {"1"},
      {"embeddings"},
      {"norms"},
      {"embeddings", "0"},
      {"0-1"},
      {"norms", "1"},
      {"0", "norms", "embeddings"},
      {"*.k_proj.*"},
      {"*.q_proj.*", "*.up_proj.weight"},
      {"*.mlp.*", "embeddings"},
      {"*.self_attn.*", "embeddings"},
      {"model.layers.?.*layernorm.weight"},
      // All but one tensor in the lowest layer.
      {"embeddings", "1", "*norm*", "*.mlp.*", "*.k_proj.*", "*.v_proj.*", "*.o_proj.*"},
      {"embeddings", "1", "*norm*", "*.self_attn.*", "*.gate_proj.*", "*.up_proj.*"},
      {"embeddings", "0", "*norm*", "*.mlp.*", "*.q_proj.*", "*.k_proj.*", "*.v_proj.*"}};
  if (all->config().attention_bias) {
    cases.push_back({"embeddings", "1", "*norm*", "*.weight"});  // biases of layer 0 alone
  }
  if (all->config().qk_norm) {
    cases.push_back({"embeddings", "1", "*_proj*", "*layernorm*", "model.norm.weight"});
  }
  if (!all->config().tied_embeddings) {
    cases.push_back({"head"});
    cases.push_back({"embeddings", "0-1", "norms"});  // the head alone is trained
  }
  for (const std::vector<std::string>& names : cases) {
    SCOPED_TRACE(testing::PrintToString(names));
    const LlamaFrozen frozen = parse_frozen(names, all->config());
    const TestModel some(folder, {.training = true, .frozen = frozen});
    const double loss = some->loss_and_gradients(batch.view(), batch.gradient_scale());
    EXPECT_GT(loss, 0);
    int64_t compared = 0;
    for (const Parameter& parameter : some->parameters()) {
      if (parameter.trainable()) {
        EXPECT_LT(relative_error(to_vector(parameter.gradient),
                                 to_vector(all.find(parameter.name)->gradient)),
                  kRounding)
            << parameter.name;
        ++compared;
      }
      const bool is_norm = parameter.name.find("norm") != std::string::npos;
      const bool left_out =
          (frozen.norms && is_norm) ||
          (frozen.embeddings && parameter.role == ParameterRole::embedding) ||
          (frozen.head && parameter.name == "lm_head.weight") ||
          (frozen.layer(0) && parameter.name.find("layers.0.") != std::string::npos) ||
          (frozen.layer(1) && parameter.name.find("layers.1.") != std::string::npos) ||
          std::any_of(names.begin(), names.end(), [&](const std::string& pattern) {
            return matches_as_file_names(pattern, parameter.name);
          });
      EXPECT_EQ(parameter.trainable(), !left_out) << parameter.name;
    }
    EXPECT_GT(compared, 0);
    EXPECT_EQ(trained_numbers(some), llama_trainable_size(some->config(), {}, frozen));
    // Nothing is planned for what is frozen: buffers are rounded up to 64 bytes each.
    EXPECT_LT(some.plan.kind_bytes(MemoryKind::gradients),
              4 * trained_numbers(some) + 64 * static_cast<int64_t>(some->parameters().size()));
  }
}

TEST_P(Freezing, LayersWithoutAnAdapterLeaveTheOthersGradientsAsTheyAre) {
  const std::string folder = golden_folder(GetParam());
  const TestBatch batch = golden_batch(open_golden(GetParam()));
  const TestModel all(folder, {.training = true, .lora = LoraOptions{.rank = 4}});
  all->initialize_adapters(2);  // B is zero: adapters of other layers change nothing
  all->loss_and_gradients(batch.view(), batch.gradient_scale());
  for (const int64_t layer : {0, 1}) {
    const LoraOptions options = {.rank = 4, .layers = {layer}};
    const TestModel one(folder, {.training = true, .lora = options});
    for (const Parameter& parameter : one->parameters()) {
      if (parameter.trainable()) {
        std::memcpy(parameter.value.data, all.find(parameter.name)->value.data,
                    static_cast<size_t>(parameter.value.bytes()));
      }
    }
    one->loss_and_gradients(batch.view(), batch.gradient_scale());
    int64_t compared = 0;
    for (const Parameter& parameter : one->parameters()) {
      if (parameter.trainable()) {
        EXPECT_EQ(to_vector(parameter.gradient), to_vector(all.find(parameter.name)->gradient))
            << parameter.name;
        ++compared;
      }
    }
    EXPECT_EQ(compared, 14);  // A and B of seven linears
    EXPECT_EQ(trained_numbers(one), llama_trainable_size(one->config(), options));
    EXPECT_EQ(2 * trained_numbers(one), trained_numbers(all));
  }
  MemoryPlan plan;
  EXPECT_THROW(LlamaModel(all->config(), {.lora = LoraOptions{.rank = 4, .layers = {2}}}, plan),
               InvalidArgument);
}

TEST_P(Freezing, EveryRecomputeLevelGivesTheSameBits) {
  const std::string folder = golden_folder(GetParam());
  const TestBatch batch = golden_batch(open_golden(GetParam()));
  for (const std::vector<std::string>& names :
       {std::vector<std::string>{"embeddings", "0"}, {"embeddings", "*norm*", "*.k_proj.*"}}) {
    const ModelConfig config = ModelFiles::open(folder).config();
    const LlamaFrozen frozen = parse_frozen(names, config);
    std::vector<float> expected;
    for (const LlamaRecompute level : kLlamaRecomputeLevels) {
      const TestModel model(folder, {.training = true, .frozen = frozen, .recompute = level});
      model->loss_and_gradients(batch.view(), batch.gradient_scale());
      if (expected.empty()) {
        expected = model.gradients();
      }
      EXPECT_EQ(model.gradients(), expected) << llama_recompute_name(level);
    }
  }
}

// A model of twelve layers is planned alone.
MemoryPlan plan_of(const ModelConfig& config, const LlamaModel::Options& options) {
  MemoryPlan plan;
  const LlamaModel model(config, options, plan);
  return plan;
}

TEST(Frozen, NothingIsPlannedBelowTheLowestTrainedLayer) {
  ModelConfig config = config_of("llama2");
  config.layers = 12;
  for (const LlamaRecompute level : kLlamaRecomputeLevels) {
    const auto planned = [&](const std::vector<std::string>& names) {
      return plan_of(config, {.training = true,
                              .frozen = parse_frozen(names, config),
                              .recompute = level,
                              .max_tokens = 64});
    };
    const auto activations = [](const MemoryPlan& plan) {
      return plan.kind_bytes(MemoryKind::activations);
    };
    const int64_t all = activations(planned({}));
    const int64_t one = activations(planned({"embeddings", "0-10"}));
    const int64_t two = activations(planned({"embeddings", "0-9"}));
    EXPECT_EQ(activations(planned({"embeddings", "0-3"})), one + 7 * (two - one));
    EXPECT_EQ(all, one + 11 * (two - one));
    EXPECT_GT(two, one);
    // The embeddings' gradient has come through every layer.
    EXPECT_EQ(activations(planned({"0-10"})), all);
    // A layer is trained if any of its tensors is.
    EXPECT_EQ(activations(planned(
                  {"embeddings", "0-8", "model.layers.9.mlp.*", "model.layers.9.self_attn.*"})),
              one + 2 * (two - one));
    EXPECT_EQ(activations(planned({"embeddings", "0-8", "model.layers.9.*"})), two);
    // The head alone: one layer's buffers for the forward pass.
    EXPECT_EQ(activations(planned({"embeddings", "0-11", "norms"})), one);
    // Adapters of the upper layers.
    const auto lora = [&](std::vector<int64_t> layers) {
      return activations(
          plan_of(config, {.training = true,
                           .lora = LoraOptions{.rank = 4, .layers = std::move(layers)},
                           .recompute = level,
                           .max_tokens = 64}));
    };
    EXPECT_EQ(lora({8, 9, 10, 11}) - lora({10, 11}), 2 * (lora({10, 11}) - lora({11})));
    EXPECT_EQ(lora({}) - lora({11}), 11 * (lora({10, 11}) - lora({11})));
  }
}

TEST(Frozen, TheLowestTrainedLayerIsFound) {
  ModelConfig config = config_of("qwen3");
  config.layers = 12;
  const auto lowest = [&](const std::vector<std::string>& names) {
    return llama_lowest_trained_layer(config, {}, parse_frozen(names, config));
  };
  EXPECT_EQ(lowest({}), 0);
  EXPECT_EQ(lowest({"0-5"}), 0);
  EXPECT_EQ(lowest({"embeddings", "1-5"}), 0);
  EXPECT_EQ(lowest({"embeddings", "0-5"}), 6);
  EXPECT_EQ(lowest({"model.embed_tokens.weight", "model.layers.?.*"}), 10);
  EXPECT_EQ(lowest({"embeddings", "0-11"}), 12);
  EXPECT_EQ(llama_lowest_trained_layer(config, LoraOptions{.layers = {3, 7}}), 3);
  EXPECT_EQ(llama_lowest_trained_layer(config, LoraOptions{}), 0);
}

TEST(Frozen, IsParsedAndDescribed) {
  ModelConfig config = config_of("llama2");
  config.layers = 12;
  const auto parse = [&](const std::vector<std::string>& names) {
    return parse_frozen(names, config);
  };
  EXPECT_EQ(describe(parse({"7", "0-3", "norms", "embeddings", "2-4", "9-10", "head"})),
            "embeddings, head, norms, 0-4, 7, 9-10");
  EXPECT_EQ(describe(parse({})), "nothing");
  EXPECT_FALSE(parse({}).any());
  EXPECT_EQ(describe(parse({"*.up_proj.weight", "3", "*.k_proj.*", "*.k_proj.*"})),
            "3, *.k_proj.*, *.up_proj.weight");
  EXPECT_TRUE(parse({"*.k_proj.*"}).tensor("model.layers.11.self_attn.k_proj.weight"));
  EXPECT_FALSE(parse({"*.k_proj.*"}).tensor("model.layers.11.self_attn.v_proj.weight"));
  for (const char* wrong : {"*.x_proj.*", "k_proj", "model.layers.12.*", "model.layers.1.", "?"}) {
    EXPECT_THAT([&] { parse({wrong}); },
                ThrowsMessage<InvalidArgument>(HasSubstr("a tensor of this model, as \"model.")))
        << wrong;
  }
  EXPECT_THROW(parse({"*"}), InvalidArgument);
  EXPECT_THROW(parse({"model.*", "head"}), InvalidArgument);
  for (const char* wrong :
       {"12", "0-12", "3-2", "-1", "1-", "layer 1", "", "1.5", "0-99999999999"}) {
    EXPECT_THAT([&] { parse({wrong}); },
                ThrowsMessage<InvalidArgument>(HasSubstr("layers of 0-11")))
        << wrong;
  }
  EXPECT_THROW(parse({"0-11", "embeddings", "norms", "head"}), InvalidArgument);
  EXPECT_NO_THROW(parse({"0-11", "embeddings", "norms"}));
  const std::vector<std::string> head = {"head"};
  EXPECT_THAT([&] { parse_frozen(head, config_of("smollm2")); },
              ThrowsMessage<InvalidArgument>(HasSubstr("\"embeddings\"")));
}

TEST(Frozen, SavesTheFlopsOfItsGradients) {
  const ModelConfig config = config_of("llama2");
  const LlamaWork work = {.tokens = 64, .loss_tokens = 64, .visible_pairs = 64 * 65 / 2};
  const double all = llama_training_flops(config, nullptr, work);
  const double forward = llama_forward_flops(config, nullptr, work);
  EXPECT_NEAR(all, 3 * forward, 1e-9 * all);
  // The head's weight alone: no way back into the layers.
  const std::vector<std::string> names = {"embeddings", "norms", "0-1"};
  const double head = 2.0 * static_cast<double>(config.vocabulary_size * config.hidden_size) * 64;
  EXPECT_NEAR(llama_training_flops(config, nullptr, work, parse_frozen(names, config)),
              forward + 2 * head, 1e-9 * all);
  // One linear's weight less.
  const std::vector<std::string> up = {"model.layers.1.mlp.up_proj.weight"};
  EXPECT_NEAR(llama_training_flops(config, nullptr, work, parse_frozen(up, config)),
              all - 2.0 * static_cast<double>(config.hidden_size * config.intermediate_size) * 64,
              1e-9 * all);
  // Adapters in the upper of two layers: half of the way back.
  const LoraOptions both = {.rank = 4}, upper = {.rank = 4, .layers = {1}};
  const double back =
      llama_training_flops(config, &both, work) - llama_forward_flops(config, &both, work) - head;
  EXPECT_NEAR(
      llama_training_flops(config, &upper, work) - llama_forward_flops(config, &upper, work) - head,
      back / 2, 1e-9 * all);
}

TEST(Neftune, IsTheLossOfAMovedEmbedding) {
  const std::string folder = golden_folder("llama2");  // its head is not its embedding
  TestBatch batch;
  std::vector<int32_t> tokens(12);
  std::iota(tokens.begin(), tokens.end(), 5);  // all different, so each has a row of its own
  std::vector<int32_t> labels(tokens.begin() + 1, tokens.end());
  labels.push_back(kIgnoredLabel);
  batch.add(tokens, labels);
  const EmbeddingNoise noise = {.alpha = 7, .seed = 3, .step = 2};

  const TestModel noisy(folder, {.training = true});
  LlamaBatch view = batch.view();
  view.noise = noise;
  const double plain = noisy->evaluate(batch.view());
  EXPECT_EQ(noisy->evaluate(view), plain);  // training alone
  const double loss = noisy->loss_and_gradients(view, batch.gradient_scale());
  EXPECT_NE(loss, plain);

  const TestModel moved(folder, {.training = true});
  const TensorView embedding = moved->weights().values().embedding;
  add_embedding_noise(embedding.slice(0, tokens.front(), static_cast<int64_t>(tokens.size())),
                      view.cu_seqlens, noise);
  EXPECT_EQ(moved->loss_and_gradients(batch.view(), batch.gradient_scale()), loss);
  EXPECT_EQ(moved.gradients(), noisy.gradients());
}

TEST(RankStabilizedLora, ScalesByTheRootOfTheRank) {
  const LoraOptions plain = {.rank = 16, .alpha = 32};
  const LoraOptions stabilized = {.rank = 16, .alpha = 32, .rank_stabilized = true};
  EXPECT_EQ(plain.scale(), 2);
  EXPECT_EQ(stabilized.scale(), 8);
}

}  // namespace
}  // namespace flashloom
