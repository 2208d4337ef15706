#include "flashloom/models/llama/llama_frozen.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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
  std::vector<std::vector<std::string>> cases = {{"0"},
                                                 {"1"},
                                                 {"embeddings"},
                                                 {"norms"},
                                                 {"embeddings", "0"},
                                                 {"0-1"},
                                                 {"norms", "1"},
                                                 {"0", "norms", "embeddings"}};
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
          (frozen.layer(1) && parameter.name.find("layers.1.") != std::string::npos);
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
