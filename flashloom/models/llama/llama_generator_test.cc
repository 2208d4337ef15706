#include "flashloom/models/llama/llama_generator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/models/llama/llama_for_test.h"

namespace flashloom {
namespace {

constexpr double kRounding = 5e-6;

struct Fixture {
  MemoryPlan plan;
  std::unique_ptr<LlamaModel> model;
  std::unique_ptr<LlamaGenerator> generator;
  std::unique_ptr<Arena> arena;

  explicit Fixture(const std::string& kind, bool adapters = false, int64_t capacity = 24,
                   int64_t chunk = 5) {
    const ModelFiles files = ModelFiles::open(golden_folder(kind));
    LlamaModel::Options options = {.max_tokens = 32};
    if (adapters) {
      options.lora = LoraOptions{.rank = 4};
    }
    model = std::make_unique<LlamaModel>(files.config(), options, plan);
    generator = std::make_unique<LlamaGenerator>(
        *model, LlamaGenerator::Options{.capacity = capacity, .chunk = chunk}, plan);
    arena = std::make_unique<Arena>(plan);
    model->bind(*arena);
    generator->bind(*arena);
    model->load(files);
    model->initialize_adapters(1);
    for (const Parameter& parameter : model->parameters()) {
      if (parameter.role == ParameterRole::adapter_b) {
        std::fill_n(parameter.value.as<float>(), parameter.value.size(), 0.1f);
      }
    }
  }
};

std::vector<int32_t> some_tokens(size_t count) {
  std::vector<int32_t> tokens(count);
  for (size_t i = 0; i < count; ++i) {
    tokens[i] = static_cast<int32_t>((i * 31 + 7) % 97);
  }
  return tokens;
}

/// Row `row` of the logits of a whole forward pass.
std::vector<float> whole_logits(LlamaModel& model, const std::vector<int32_t>& tokens, size_t row) {
  TestBatch batch;
  batch.add(tokens, std::vector<int32_t>(tokens.size(), kIgnoredLabel));
  const std::vector<float> logits = logits_of(model, batch);
  const auto width = static_cast<int64_t>(logits.size() / tokens.size());
  const auto first = logits.begin() + static_cast<int64_t>(row) * width;
  return {first, first + width};
}

class LlamaGeneratorKinds : public testing::TestWithParam<std::string> {};

INSTANTIATE_TEST_SUITE_P(Kinds, LlamaGeneratorKinds, testing::ValuesIn(golden_kinds()),
                         [](const auto& test) { return test.param; });

TEST_P(LlamaGeneratorKinds, PrefillAndDecodeEqualTheWholeForwardPass) {
  for (const bool adapters : {false, true}) {
    const Fixture fixture(GetParam(), adapters);
    const std::vector<int32_t> tokens = some_tokens(20);
    const std::span all(tokens);
    // 13 tokens are chunks of 5, 5 and 3.
    EXPECT_LT(relative_error(to_vector(fixture.generator->append(all.first(13))),
                             whole_logits(*fixture.model, tokens, 12)),
              kRounding);
    for (size_t t = 13; t < tokens.size(); ++t) {
      EXPECT_LT(relative_error(to_vector(fixture.generator->append(all.subspan(t, 1))),
                               whole_logits(*fixture.model, tokens, t)),
                kRounding)
          << t;
    }
    EXPECT_EQ(fixture.generator->length(), 20);
  }
}

TEST(LlamaGenerator, ContinuesFromATruncatedContext) {
  const Fixture fixture("qwen3");
  const std::vector<int32_t> tokens = some_tokens(9);
  const std::vector<float> expected = to_vector(fixture.generator->append(tokens));
  const std::vector<int32_t> other = {3, 4, 5};
  fixture.generator->append(other);
  fixture.generator->truncate(5);
  EXPECT_EQ(to_vector(fixture.generator->append(std::span(tokens).subspan(5))), expected);
  EXPECT_THROW(fixture.generator->truncate(10), InvalidArgument);
}

TEST(LlamaGenerator, HasTheSameBitsForAnyNumberOfThreads) {
  std::vector<float> first;
  for (const int threads : {1, 2, 3}) {
    set_thread_count(threads);
    const Fixture fixture("llama3");
    fixture.generator->append(some_tokens(11));
    const std::vector<int32_t> next = {5};
    const std::vector<float> logits = to_vector(fixture.generator->append(next));
    if (first.empty()) {
      first = logits;
    }
    EXPECT_EQ(logits, first);
  }
  set_thread_count(0);
}

TEST(LlamaGenerator, RejectsWhatDoesNotFit) {
  const Fixture fixture("llama2", false, 8, 4);
  const std::vector<int32_t> tokens = some_tokens(9);
  EXPECT_THAT([&] { fixture.generator->append(tokens); },
              testing::ThrowsMessage<InvalidArgument>(testing::HasSubstr("capacity 8")));
  EXPECT_EQ(fixture.generator->length(), 0);
  EXPECT_THROW(fixture.generator->append({}), InvalidArgument);
  const std::vector<int32_t> outside = {97};
  EXPECT_THROW(fixture.generator->append(outside), InvalidArgument);
  const std::vector<int32_t> negative = {-1};
  EXPECT_THROW(fixture.generator->append(negative), InvalidArgument);
  EXPECT_NO_THROW(fixture.generator->append(std::span(tokens).first(8)));
}

}  // namespace
}  // namespace flashloom
