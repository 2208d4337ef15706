#include "flashloom/train/guards.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <string>

#include "flashloom/core/error.h"
#include "flashloom/core/philox.h"
#include "flashloom/io/model_files.h"
#include "flashloom/models/llama/llama.h"
#include "flashloom/train/evaluation.h"
#include "flashloom/train/optimizer.h"

namespace flashloom {
namespace {

using testing::HasSubstr;

struct Settings {
  std::string kind = "smollm2";
  std::optional<LoraOptions> lora;
  double learning_rate = 1e-3;
  int64_t batch_tokens = 128;
  uint64_t seed = 0;
  DType weight_dtype = DType::f32;
  OptimizerMoments moments = OptimizerMoments::f32;
  Bf16Updates bf16_updates = Bf16Updates::stochastic;
};

// A training loop into which a test plants a fault.
class Loop {
 public:
  explicit Loop(const Settings& settings)
      : guards({}, settings.bf16_updates != Bf16Updates::nearest),
        settings_(settings),
        files_(ModelFiles::open(std::string(FLASHLOOM_SOURCE_DIR) + "/tests/golden/models/" +
                                settings.kind)),
        model_(files_.config(),
               {.training = true,
                .lora = settings.lora,
                .weight_dtype = settings.weight_dtype,
                .max_tokens = settings.batch_tokens,
                .max_sequence_length = kProbeTokens,
                .max_sequences = settings.batch_tokens},
               plan_),
        optimizer_({.learning_rate = settings.learning_rate,
                    .moments = settings.moments,
                    .bf16_updates = settings.bf16_updates},
                   model_.parameters(), plan_),
        arena_(plan_) {
    model_.bind(arena_);
    model_.load(files_);
    model_.initialize_adapters(settings.seed);
    optimizer_.bind(arena_, model_.parameters());
    RandomSequence random(settings.seed, RandomStream::test);
    for (int i = 0; i < 60; ++i) {
      std::vector<int32_t> tokens(6 + random.bits() % 17);
      for (int32_t& token : tokens) {
        token = static_cast<int32_t>(random.bits() % vocabulary());
      }
      documents_.add(tokens, std::vector<uint8_t>(tokens.size(), 1));
    }
    shape_ = {.bin_capacity = settings.batch_tokens / 2, .bins_per_step = 2};
  }

  uint32_t vocabulary() const { return static_cast<uint32_t>(files_.config().vocabulary_size); }

  double gradients(std::span<const PackedBatch> batches) {
    int64_t tokens = 0;
    for (const PackedBatch& batch : batches) {
      tokens += batch.loss_tokens;
    }
    double sum = 0;
    model_.zero_gradients();
    for (const PackedBatch& batch : batches) {
      const int64_t count = divides_by_own_count ? batch.loss_tokens * 2 : tokens;
      sum += model_.loss_and_gradients(
          batch_view(batch), gradient_factor / static_cast<float>(std::max<int64_t>(1, count)));
    }
    return sum / static_cast<double>(std::max<int64_t>(1, tokens));
  }

  void probe() {
    guards.check_parameters(files_.config(), settings_.lora, {},
                            parameters.empty() ? model_.parameters() : parameters);
    guards.check_packing(probe_packing(vocabulary(), [&](const PackedBatch& batch) {
      PackedBatch seen = batch;
      if (leaks) {
        seen.cu_seqlens = {0, seen.cu_seqlens.back()};
        seen.max_length = kProbeTokens;
      }
      model_.evaluate(batch_view(seen));
      return model_.token_losses();
    }));
    guards.check_gradient_probe(probe_gradients(
        vocabulary(), model_.parameters(),
        [&](std::span<const PackedBatch> batches) { gradients(batches); },
        [&](std::span<const PackedBatch> batches) {
          double sum = 0;
          int64_t tokens = 0;
          for (const PackedBatch& batch : batches) {
            sum += model_.evaluate(batch_view(batch));
            tokens += batch.loss_tokens;
          }
          return sum / static_cast<double>(tokens);
        }));
  }

  void run(int64_t steps) {
    probe();
    PackedStream stream(documents_, shape_, {.seed = settings_.seed});
    std::vector<PackedBatch> batches;
    for (int64_t step = 1; step <= steps; ++step) {
      stream.next(batches);
      for (PackedBatch& batch : batches) {
        if (spoil_batch) {
          spoil_batch(batch);
        }
      }
      guards.check_batches(step, batches);
      const double loss = gradients(batches);
      if (spoil_gradients) {
        spoil_gradients(model_.parameters());
      }
      guards.before_update(model_.parameters());
      const OptimizerStep update = optimizer_.step(1);
      if (spoil_weights) {
        spoil_weights(model_.parameters());
      }
      guards.after_update(step, update.learning_rate, model_.parameters(),
                          optimizer_.gradient_norms());
      guards.check_loss(step, loss + extra_loss * static_cast<double>(step == steps));
    }
  }

  LlamaModel& model() { return model_; }

  const TokenDocuments& documents() const { return documents_; }

  bool divides_by_own_count = false;
  float gradient_factor = 1;
  bool leaks = false;
  double extra_loss = 0;
  std::function<void(PackedBatch&)> spoil_batch;
  std::function<void(std::span<const Parameter>)> spoil_gradients;
  std::function<void(std::span<const Parameter>)> spoil_weights;
  std::vector<Parameter> parameters;  // as an engine with a fault would list them
  TrainingGuards guards;

 private:
  Settings settings_;
  ModelFiles files_;
  MemoryPlan plan_;
  LlamaModel model_;
  Optimizer optimizer_;
  Arena arena_;
  TokenDocuments documents_;
  StepShape shape_;
};

// The one finding of this guard after at most ten steps.
std::string found(Loop& loop, const std::string& guard) {
  loop.run(10);
  for (const GuardFinding& finding : loop.guards.findings()) {
    if (finding.guard == guard) {
      // What is wrong, why it matters, what to do.
      EXPECT_FALSE(finding.what.empty() || finding.why.empty() || finding.advice.empty());
      EXPECT_LE(finding.step, 10);
      return finding.text();
    }
  }
  return "nothing found";
}

TEST(Guards, AreSilentInHealthyRuns) {
  int runs = 0;
  for (const char* kind : {"llama2", "llama3", "smollm2", "qwen2", "qwen3"}) {
    for (const bool lora : {false, true}) {
      for (const double rate : {1e-4, 3e-3}) {
        Loop loop({.kind = kind,
                   .lora = lora ? std::optional(LoraOptions{.rank = 4, .alpha = 8}) : std::nullopt,
                   .learning_rate = rate,
                   .batch_tokens = 96 + 32 * (runs % 3),
                   .seed = static_cast<uint64_t>(runs)});
        loop.run(24);
        for (const GuardFinding& finding : loop.guards.findings()) {
          ADD_FAILURE() << kind << " lora " << lora << " rate " << rate << ": " << finding.guard
                        << " in step " << finding.step << ": " << finding.text();
        }
        ++runs;
      }
    }
  }
  EXPECT_EQ(runs, 20);
}

TEST(Guards, AreSilentInHealthyRunsThatSaveMemory) {
  int runs = 0;
  for (const char* kind : {"llama2", "smollm2", "qwen2", "qwen3"}) {
    for (const Bf16Updates updates : {Bf16Updates::stochastic, Bf16Updates::master}) {
      for (const double rate : {1e-5, 1e-3}) {
        Loop loop({.kind = kind,
                   .learning_rate = rate,
                   .seed = static_cast<uint64_t>(++runs),
                   .weight_dtype = DType::bf16,
                   .moments = runs % 2 == 0 ? OptimizerMoments::bits8 : OptimizerMoments::f32,
                   .bf16_updates = updates});
        loop.run(60);
        for (const GuardFinding& finding : loop.guards.findings()) {
          ADD_FAILURE() << kind << " " << bf16_updates_name(updates) << " rate " << rate << ": "
                        << finding.guard << " in step " << finding.step << ": " << finding.text();
        }
      }
    }
  }
}

TEST(Guards, FindAFrozenTiedWeight) {
  Loop loop({});
  const auto all = loop.model().parameters();
  loop.parameters.assign(all.begin(), all.end());
  loop.parameters[0].gradient = {};
  EXPECT_THAT(found(loop, "parameters"), HasSubstr("frozen: model.embed_tokens.weight"));
}

TEST(Guards, FindLabelsThatAreNotShifted) {
  Loop loop({});
  loop.spoil_batch = [](PackedBatch& batch) { batch.labels = batch.tokens; };
  EXPECT_THAT(found(loop, "labels"), HasSubstr("not shifted"));
}

TEST(Guards, FindALabelBeyondItsDocument) {
  Loop loop({});
  loop.spoil_batch = [](PackedBatch& batch) {
    const auto last = static_cast<size_t>(batch.cu_seqlens[1]) - 1;
    batch.labels[last] = batch.tokens[last + 1];
  };
  EXPECT_THAT(found(loop, "labels"), HasSubstr("2 of"));
}

TEST(Guards, FindMaskedLabels) {
  Loop loop({});
  loop.spoil_batch = [](PackedBatch& batch) {
    std::fill(batch.labels.begin(), batch.labels.end(), kIgnoredLabel);
    batch.loss_tokens = 0;
  };
  EXPECT_THAT(found(loop, "loss tokens"), HasSubstr("bears loss"));
}

TEST(Guards, FindPositionsThatDoNotRestart) {
  Loop loop({});
  loop.spoil_batch = [](PackedBatch& batch) {
    for (size_t t = 0; t < batch.positions.size(); ++t) {
      batch.positions[t] = static_cast<int32_t>(t);
    }
  };
  EXPECT_THAT(found(loop, "positions"), HasSubstr("do not count from 0"));
}

TEST(Guards, FindPackingThatLeaks) {
  Loop loop({});
  loop.leaks = true;
  EXPECT_THAT(found(loop, "packing"), HasSubstr("see each other"));
}

TEST(Guards, FindBf16UpdatesThatAreLost) {
  // The engine's own bf16 weights, rounded to nearest.
  Loop loop(
      {.learning_rate = 1e-6, .weight_dtype = DType::bf16, .bf16_updates = Bf16Updates::nearest});
  EXPECT_THAT(found(loop, "rounding"), HasSubstr("lost to rounding"));
}

TEST(Guards, FindAWrongNormalisation) {
  Loop loop({});
  loop.divides_by_own_count = true;
  EXPECT_THAT(found(loop, "normalisation"), HasSubstr("off the mean over their tokens"));
}

TEST(Guards, FindGradientsOfAnotherScale) {
  Loop loop({});
  loop.gradient_factor = 2;
  EXPECT_THAT(found(loop, "gradient probe"), HasSubstr("not the gradients of the loss"));
}

TEST(Guards, FindGradientsOfZero) {
  Loop all({});
  all.spoil_gradients = [](std::span<const Parameter> parameters) {
    for (const Parameter& parameter : parameters) {
      std::fill_n(parameter.gradient.as<float>(), parameter.gradient.size(), 0.0f);
    }
  };
  EXPECT_THAT(found(all, "gradients"), HasSubstr("every gradient is zero"));

  Loop one({});
  one.spoil_gradients = [](std::span<const Parameter> parameters) {
    std::fill_n(parameters[3].gradient.as<float>(), parameters[3].gradient.size(), 0.0f);
  };
  EXPECT_THAT(found(one, "gradients"), HasSubstr(one.model().parameters()[3].name));
}

TEST(Guards, FindABf16WeightThatTheOptimizerLeavesOut) {
  // Stochastic rounding may leave a weight where it is for some steps, but not for fifty.
  Loop loop({.weight_dtype = DType::bf16});
  const Parameter& left_out = loop.model().parameters()[2];
  ASSERT_EQ(left_out.value.dtype, DType::bf16);
  const std::vector<bf16> values(left_out.value.as<bf16>(),
                                 left_out.value.as<bf16>() + left_out.value.size());
  loop.spoil_weights = [&](std::span<const Parameter> parameters) {
    std::copy(values.begin(), values.end(), parameters[2].value.as<bf16>());
  };
  loop.run(50);
  ASSERT_EQ(loop.guards.findings().size(), 1U);
  EXPECT_THAT(loop.guards.findings()[0].text(), HasSubstr(left_out.name));
}

TEST(Guards, FindAWeightThatTheOptimizerLeavesOut) {
  Loop loop({});
  const Parameter& left_out = loop.model().parameters()[2];
  const std::vector<float> values(left_out.value.as<float>(),
                                  left_out.value.as<float>() + left_out.value.size());
  loop.spoil_weights = [&](std::span<const Parameter> parameters) {
    std::copy(values.begin(), values.end(), parameters[2].value.as<float>());
  };
  EXPECT_THAT(found(loop, "updates"), HasSubstr(left_out.name));
}

TEST(Guards, FindUpdatesLargerThanTheWeights) {
  Loop loop({.learning_rate = 0.5});
  EXPECT_THAT(found(loop, "leaps"), HasSubstr("Lower --lr"));
}

TEST(Guards, FindALossSpike) {
  Loop loop({});
  loop.extra_loss = 20;
  loop.run(18);
  ASSERT_EQ(loop.guards.findings().size(), 1U);
  EXPECT_EQ(loop.guards.findings()[0].guard, "loss spike");
  EXPECT_EQ(loop.guards.findings()[0].step, 18);
}

TEST(Guards, NameTheOpThatLeavesTheFiniteNumbers) {
  Loop loop({});
  PackedBatch batch;
  const std::vector<int32_t> indices = {0, 1};
  fill_batch(batch, loop.documents(), indices);
  EXPECT_EQ(loop.model().first_non_finite(batch_view(batch)), "");
  const auto spoiled_at = [&](const std::string& name) {
    Loop spoiled({});
    for (const Parameter& parameter : spoiled.model().parameters()) {
      if (parameter.name == name) {
        parameter.value.as<float>()[0] = std::numeric_limits<float>::quiet_NaN();
      }
    }
    return spoiled.model().first_non_finite(batch_view(batch));
  };
  EXPECT_EQ(spoiled_at("model.layers.1.self_attn.v_proj.weight"), "layer 1: v_proj");
  EXPECT_EQ(spoiled_at("model.layers.0.self_attn.o_proj.weight"), "layer 0: o_proj");
  EXPECT_EQ(spoiled_at("model.layers.1.mlp.up_proj.weight"), "layer 1: up_proj");
  EXPECT_EQ(spoiled_at("model.norm.weight"), "the final norm");
  EXPECT_EQ(spoiled_at("model.layers.0.input_layernorm.weight"), "layer 0: input_layernorm");
}

// Weights whose products are as they were, but for what flows back through them: one factor is huge
// and one tiny.
struct BackwardFault {
  std::string place;
  std::vector<std::pair<std::string, float>> factors;  // of weights in that layer
  int64_t layer = 1;
};

TEST(Guards, NameTheOpWhoseGradientsLeaveTheFiniteNumbers) {
  constexpr float kHuge = 1e35f;
  constexpr float kTiny = 1e-35f;
  const std::vector<BackwardFault> faults = {
      {"down_proj", {{"mlp.up_proj", kTiny}, {"mlp.down_proj", kHuge}}},
      {"attention", {{"self_attn.q_proj", kTiny}, {"self_attn.k_proj", kHuge}}},
      {"o_proj", {{"self_attn.v_proj", kTiny}, {"self_attn.o_proj", kHuge}}, 0},
      // The gradient of its weight alone: what it hands back is finite.
      {"gate_proj",
       {{"post_attention_layernorm", kHuge}, {"mlp.gate_proj", kTiny}, {"mlp.up_proj", kTiny}}},
  };
  for (const bool lora : {false, true}) {
    for (const BackwardFault& fault : faults) {
      if (lora && fault.place == "gate_proj") {
        continue;
      }
      SCOPED_TRACE(fault.place + (lora ? " with LoRA" : ""));
      Loop loop({.lora = lora ? std::optional(LoraOptions{.rank = 4}) : std::nullopt});
      const auto scale = [&](const std::string& name, float factor) {
        int64_t found = 0;
        for (const Parameter& parameter : loop.model().parameters()) {
          if (parameter.name == name) {
            float* values = parameter.value.as<float>();
            std::transform(values, values + parameter.value.size(), values,
                           [&](float x) { return x * factor; });
            ++found;
          }
        }
        ASSERT_EQ(found, 1) << name;
      };
      scale("model.norm.weight", 1e6f);  // steep logits
      for (const auto& [name, factor] : fault.factors) {
        scale(fmt::format("model.layers.{}.{}.weight", fault.layer, name), factor);
      }
      PackedBatch batch;
      const std::vector<int32_t> indices = {0, 1};
      fill_batch(batch, loop.documents(), indices);
      EXPECT_TRUE(std::isfinite(loop.model().evaluate(batch_view(batch))));  // the forward pass
      EXPECT_EQ(loop.model().first_non_finite(batch_view(batch)),
                fmt::format("layer {}: the gradients of {}", fault.layer, fault.place));
    }
  }
}

TEST(Guards, AGradientThatIsNotFiniteIsAnError) {
  Loop loop({});
  loop.spoil_gradients = [](std::span<const Parameter> parameters) {
    parameters[4].gradient.as<float>()[0] = std::numeric_limits<float>::infinity();
  };
  EXPECT_THAT([&] { loop.run(1); },
              testing::ThrowsMessage<Error>(HasSubstr(loop.model().parameters()[4].name)));
}

}  // namespace
}  // namespace flashloom
