// Training with weights and moments in fewer bits, against training in f32.
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/philox.h"
#include "flashloom/io/model_files.h"
#include "flashloom/models/llama/llama.h"
#include "flashloom/text/packed_batches.h"
#include "flashloom/train/evaluation.h"
#include "flashloom/train/optimizer.h"

namespace flashloom {
namespace {

struct Precision {
  DType weights = DType::f32;
  OptimizerMoments moments = OptimizerMoments::f32;
  Bf16Updates updates = Bf16Updates::stochastic;
};

// A run of full fine-tuning on a few documents that can be learnt by heart.
class Training {
 public:
  explicit Training(const Precision& precision, double learning_rate = 2e-4)
      : files_(
            ModelFiles::open(std::string(FLASHLOOM_SOURCE_DIR) + "/tests/golden/models/smollm2")),
        model_(files_.config(),
               {.training = true, .weight_dtype = precision.weights, .max_tokens = 128}, plan_),
        optimizer_({.learning_rate = learning_rate,
                    .moments = precision.moments,
                    .bf16_updates = precision.updates,
                    .seed = 5},
                   model_.parameters(), plan_),
        arena_(plan_) {
    model_.bind(arena_);
    model_.load(files_);
    optimizer_.bind(arena_, model_.parameters());
    RandomSequence random(1, RandomStream::test);
    for (int i = 0; i < 8; ++i) {
      std::vector<int32_t> tokens(16);
      for (int32_t& token : tokens) {
        token = static_cast<int32_t>(random.bits() % 97);
      }
      documents_.add(tokens, std::vector<uint8_t>(tokens.size(), 1));
    }
    fill_batch(batch_, documents_, std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6, 7});
  }

  /// The loss before the last step.
  double train(int steps) {
    double loss = 0;
    for (int step = 0; step < steps; ++step) {
      model_.zero_gradients();
      const auto tokens = static_cast<double>(batch_.loss_tokens);
      loss = model_.loss_and_gradients(batch_view(batch_), static_cast<float>(1 / tokens)) / tokens;
      optimizer_.step(1);
    }
    return loss;
  }

  int64_t bytes(MemoryKind kind) const { return plan_.kind_bytes(kind); }

  size_t size(const std::string& name) const {
    for (const Parameter& parameter : model_.parameters()) {
      if (parameter.name == name) {
        return static_cast<size_t>(parameter.value.size());
      }
    }
    return 0;
  }

  /// Everything that a checkpoint keeps.
  std::map<std::string, std::vector<std::byte>> state() const {
    std::map<std::string, std::vector<std::byte>> state;
    const auto keep = [&](const std::string& name, const TensorView& view) {
      const auto* bytes = static_cast<const std::byte*>(view.data);
      state[name] = {bytes, bytes + view.bytes()};
    };
    for (const StateTensor& tensor : optimizer_.state()) {
      keep(tensor.name, tensor.value);
    }
    for (const Parameter& parameter : model_.parameters()) {
      keep(parameter.name, parameter.value);
    }
    return state;
  }

  void restore(const std::map<std::string, std::vector<std::byte>>& state, int64_t steps) {
    const auto put = [&](const std::string& name, const TensorView& view) {
      std::copy(state.at(name).begin(), state.at(name).end(), static_cast<std::byte*>(view.data));
    };
    for (const StateTensor& tensor : optimizer_.state()) {
      put(tensor.name, tensor.value);
    }
    for (const Parameter& parameter : model_.parameters()) {
      put(parameter.name, parameter.value);
    }
    optimizer_.set_steps(steps);
  }

 private:
  ModelFiles files_;
  MemoryPlan plan_;
  LlamaModel model_;
  Optimizer optimizer_;
  Arena arena_;
  TokenDocuments documents_;
  PackedBatch batch_;
};

constexpr Precision kStochastic = {.weights = DType::bf16};
constexpr Precision kMaster = {.weights = DType::bf16, .updates = Bf16Updates::master};
constexpr Precision kNearest = {.weights = DType::bf16, .updates = Bf16Updates::nearest};
constexpr Precision kMoments8 = {.moments = OptimizerMoments::bits8};
constexpr Precision kSmallest = {.weights = DType::bf16, .moments = OptimizerMoments::bits8};

TEST(LowPrecision, LearnsAsF32DoesUnlessUpdatesAreLost) {
  const auto learnt = [](const Precision& precision) {
    Training run(precision);
    const double before = run.train(1);
    return before - run.train(80);
  };
  const double f32 = learnt({});
  EXPECT_GT(f32, 0.5);
  EXPECT_NEAR(learnt(kStochastic) / f32, 1, 0.05);
  EXPECT_NEAR(learnt(kMaster) / f32, 1, 0.05);
  EXPECT_NEAR(learnt(kMoments8) / f32, 1, 0.05);
  EXPECT_NEAR(learnt(kSmallest) / f32, 1, 0.05);
  EXPECT_LT(learnt(kNearest) / f32, 0.9);
}

TEST(LowPrecision, TakesTheBytesThatItPromises) {
  const auto bytes = [](const Precision& precision, MemoryKind kind) {
    return static_cast<double>(Training(precision).bytes(kind));
  };
  const double weights = bytes({}, MemoryKind::weights);
  const double moments = bytes({}, MemoryKind::optimizer);
  // Vectors, and moments of small tensors, keep f32; buffers are rounded up to 64 bytes.
  EXPECT_NEAR(bytes(kStochastic, MemoryKind::weights) / weights, 0.5, 0.02);
  EXPECT_EQ(bytes(kStochastic, MemoryKind::optimizer), moments);
  EXPECT_NEAR(bytes(kMaster, MemoryKind::optimizer) / moments, 1.5, 0.02);
  double eight = 0;
  Training training(kMoments8);
  for (const auto& [name, state] : training.state()) {
    if (name.starts_with("m.") || name.starts_with("v.")) {
      const size_t size = training.size(name.substr(2));
      EXPECT_EQ(state.size(), size >= 4096 ? size : 4 * size) << name;
      eight += static_cast<double>(state.size() + (size >= 4096 ? (size + 255) / 256 * 4 : 0));
    }
  }
  EXPECT_LT(eight, 0.95 * moments);
  EXPECT_NEAR(bytes(kMoments8, MemoryKind::optimizer), eight, 0.01 * moments);
  EXPECT_EQ(bytes(kMoments8, MemoryKind::gradients), bytes({}, MemoryKind::gradients));
}

TEST(LowPrecision, GoesOnFromItsStateBitForBitWithAnyNumberOfThreads) {
  for (const Precision& precision : {kStochastic, kMaster, kMoments8, kSmallest}) {
    set_thread_count(1);
    Training whole(precision);
    whole.train(6);
    Training first(precision);
    first.train(2);
    set_thread_count(3);
    Training second(precision);
    second.restore(first.state(), 2);
    second.train(4);
    EXPECT_TRUE(second.state() == whole.state());
    // The state matters: forgetting how many steps were taken changes the result.
    Training forgetful(precision);
    forgetful.restore(first.state(), 0);
    forgetful.train(4);
    EXPECT_FALSE(forgetful.state() == whole.state());
  }
  set_thread_count(0);
}

TEST(LowPrecision, NamesItsChoices) {
  EXPECT_EQ(parse_optimizer("adamw8bit"), OptimizerMoments::bits8);
  EXPECT_EQ(optimizer_name(OptimizerMoments::f32), "adamw");
  EXPECT_EQ(parse_bf16_updates("master"), Bf16Updates::master);
  EXPECT_EQ(bf16_updates_name(Bf16Updates::nearest), "nearest");
  EXPECT_THROW(parse_optimizer("sgd"), InvalidArgument);
  EXPECT_THROW(parse_bf16_updates(""), InvalidArgument);
}

}  // namespace
}  // namespace flashloom
