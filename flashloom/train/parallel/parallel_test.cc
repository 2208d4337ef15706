#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <numeric>
#include <string>
#include <vector>

#include "flashloom/comm/thread_ranks_for_test.h"
#include "flashloom/core/philox.h"
#include "flashloom/train/optimizer.h"
#include "flashloom/train/parallel/data_parallel.h"
#include "flashloom/train/parallel/shards.h"

namespace flashloom {
namespace {

TEST(Shards, CoverEveryNumberOnceInOrderAndEvenly) {
  const std::vector<std::vector<int64_t>> cases = {{1000000}, {5, 300, 7, 70000, 0, 1}, {3},
                                                   {},        {256, 256, 256},          {255, 255}};
  for (const std::vector<int64_t>& sizes : cases) {
    const int64_t total = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
    for (const int ranks : {1, 2, 3, 7}) {
      const Shards shards(sizes, ranks, 256);
      std::vector<int64_t> next(sizes.size());
      size_t open = 0;  // tensors before it are covered
      for (int rank = 0; rank < ranks; ++rank) {
        // A range may begin up to a block before its ideal place.
        EXPECT_LE(std::abs(shards.elements(rank) - total / ranks), 256 + 1);
        ASSERT_EQ(shards.of(rank).size(), sizes.size());
        for (size_t t = 0; t < sizes.size(); ++t) {
          const TensorPart part = shards.of(rank)[t];
          if (part.count > 0) {
            EXPECT_GE(t, open);
            open = t;
            EXPECT_EQ(part.first, next[t]);
            EXPECT_EQ(part.first % 256, 0);
            next[t] += part.count;
          }
        }
      }
      EXPECT_EQ(next, sizes);
    }
  }
  EXPECT_THROW(Shards(std::vector<int64_t>{1}, 0, 1), InvalidArgument);
}

// Parameters of every kind: cut tensors, whole ones, few numbers, f32 beside bf16.
class Model {
 public:
  Model(MemoryPlan& plan, DType dtype) {
    add(plan, "embedding", dtype, 9000, ParameterRole::embedding);
    add(plan, "frozen", dtype, 50, ParameterRole::matrix, false);
    add(plan, "norm", DType::f32, 48, ParameterRole::vector);
    add(plan, "matrix", dtype, 5000, ParameterRole::matrix);
    add(plan, "b", DType::f32, 300, ParameterRole::adapter_b);
  }

  void bind(const Arena& arena) {
    for (size_t i = 0; i < parameters_.size(); ++i) {
      parameters_[i].value = arena[ids_[i].first];
      if (ids_[i].second >= 0) {
        parameters_[i].gradient = arena[ids_[i].second];
      }
    }
    RandomSequence random(1, RandomStream::test);
    for (const Parameter& parameter : parameters_) {
      for (int64_t i = 0; i < parameter.value.size(); ++i) {
        const float x = random.normal();
        if (parameter.value.dtype == DType::bf16) {
          parameter.value.as<bf16>()[i] = bf16(x);
        } else {
          parameter.value.as<float>()[i] = x;
        }
      }
    }
  }

  // What rank `rank` of `ranks` has computed: sums over ranks are exact, so every cut gives the
  // same.
  void set_gradients(int rank, int ranks, int step) {
    RandomSequence random(100 + static_cast<uint64_t>(step), RandomStream::test);
    for (const Parameter& parameter : parameters_) {
      for (int64_t i = 0; i < (parameter.trainable() ? parameter.value.size() : 0); ++i) {
        const auto all = static_cast<float>(static_cast<int>(random.bits() % 4096) - 2048) / 256;
        parameter.gradient.as<float>()[i] = rank == i % ranks ? all : 0;
      }
    }
  }

  std::span<const Parameter> parameters() const { return parameters_; }

  std::string bytes() const {
    std::string all;
    for (const Parameter& parameter : parameters_) {
      all.append(static_cast<const char*>(parameter.value.data),
                 static_cast<size_t>(parameter.value.bytes()));
    }
    return all;
  }

 private:
  void add(MemoryPlan& plan, const char* name, DType dtype, int64_t size, ParameterRole role,
           bool trained = true) {
    const MemoryPlan::Id value = plan.add(name, MemoryKind::weights, dtype, {size});
    const MemoryPlan::Id gradient =
        trained ? plan.add(name, MemoryKind::gradients, DType::f32, {size}) : -1;
    ids_.emplace_back(value, gradient);
    parameters_.push_back(
        {name, role, plan.shape(value), trained ? plan.shape(gradient) : TensorView()});
  }

  std::vector<std::pair<MemoryPlan::Id, MemoryPlan::Id>> ids_;
  std::vector<Parameter> parameters_;
};

struct Outcome {
  std::string weights;
  std::vector<double> norms;
  int64_t optimizer_bytes = 0;
  int64_t sent = 0;
};

Outcome train(Communicator& communicator, const OptimizerOptions& options, DType dtype) {
  MemoryPlan plan;
  Model model(plan, dtype);
  DataParallel parallel(communicator, model.parameters(), plan);
  Optimizer optimizer(options, model.parameters(), plan, parallel.place());
  const Arena arena(plan);
  model.bind(arena);
  parallel.bind(arena, model.parameters());
  optimizer.bind(arena, model.parameters());
  const int64_t before = communicator.bytes_sent();
  for (int step = 0; step < 3; ++step) {
    model.set_gradients(communicator.rank(), communicator.size(), step);
    parallel.reduce_gradients();
    optimizer.step(1, [&](std::span<double> values) { parallel.sum(values); });
    parallel.gather_parameters();
  }
  return {model.bytes(),
          {optimizer.gradient_norms().begin(), optimizer.gradient_norms().end()},
          plan.kind_bytes(MemoryKind::optimizer),
          communicator.bytes_sent() - before};
}

TEST(DataParallel, UpdatesAsOneRankDoes) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (const OptimizerMoments moments : {OptimizerMoments::f32, OptimizerMoments::bits8}) {
      for (const Bf16Updates updates : {Bf16Updates::stochastic, Bf16Updates::master}) {
        const OptimizerOptions options = {.learning_rate = 1e-2,
                                          .weight_decay = 0.1,
                                          .clip_norm = 5,
                                          .moments = moments,
                                          .bf16_updates = updates,
                                          .seed = 3};
        const std::unique_ptr<Communicator> alone = single_process();
        const Outcome one = train(*alone, options, dtype);
        EXPECT_EQ(one.sent, 0);
        for (const int ranks : {2, 3}) {
          run_ranks(ranks, [&](Communicator& communicator) {
            const Outcome many = train(communicator, options, dtype);
            EXPECT_TRUE(many.weights == one.weights)
                << ranks << " ranks, " << dtype_name(dtype) << ", " << optimizer_name(moments);
            ASSERT_EQ(many.norms.size(), one.norms.size());
            for (size_t i = 0; i < one.norms.size(); ++i) {
              EXPECT_NEAR(many.norms[i], one.norms[i], 1e-12 * one.norms[i]);
            }
            // Tensors begin at multiples of 64 bytes, and ranges differ by a block.
            EXPECT_LT(many.optimizer_bytes, one.optimizer_bytes / ranks + 12000);
          });
        }
      }
    }
  }
}

TEST(DataParallel, SendsWhatReduceScatterAndAllGatherMustSend) {
  run_ranks(2, [](Communicator& communicator) {
    const Outcome outcome = train(communicator, {}, DType::f32);
    constexpr int64_t kNumbers = 9000 + 48 + 5000 + 300;
    constexpr int64_t kSteps = 3;
    const int64_t bound = kSteps * 2 * kNumbers * 4 / 2;
    // Beside them the norms, and ranges that differ by a block at most.
    EXPECT_GE(outcome.sent, bound);
    EXPECT_LE(outcome.sent, bound + kSteps * (2 * 256 * 4 + 4 * 8));
  });
}

TEST(DataParallel, EveryRankRefusesWhatOneFindsNotFinite) {
  run_ranks(3, [](Communicator& communicator) {
    MemoryPlan plan;
    Model model(plan, DType::f32);
    DataParallel parallel(communicator, model.parameters(), plan);
    Optimizer optimizer({}, model.parameters(), plan, parallel.place());
    const Arena arena(plan);
    model.bind(arena);
    parallel.bind(arena, model.parameters());
    optimizer.bind(arena, model.parameters());
    model.set_gradients(communicator.rank(), 3, 0);
    if (communicator.rank() == 1) {
      model.parameters()[3].gradient.as<float>()[7] = std::numeric_limits<float>::infinity();
    }
    parallel.reduce_gradients();
    const std::string before = model.bytes();
    EXPECT_THAT([&] { optimizer.step(1, [&](std::span<double> values) { parallel.sum(values); }); },
                testing::ThrowsMessage<Error>(testing::HasSubstr("the gradient of matrix")));
    EXPECT_TRUE(model.bytes() == before);
    EXPECT_TRUE(parallel.any(communicator.rank() == 2));
    EXPECT_FALSE(parallel.any(false));
  });
}

TEST(Ranks, AgreeOrSayWhoDiffers) {
  run_ranks(3, [](Communicator& communicator) {
    EXPECT_EQ(least_of_ranks(communicator, 10 - communicator.rank()), 8);
    require_same(communicator, "model", "ab");
    EXPECT_THAT(
        [&] { require_same(communicator, "model", communicator.rank() == 2 ? "ac" : "ab"); },
        testing::ThrowsMessage<Error>(testing::HasSubstr("rank 2 has another model than rank 0")));
  });
}

}  // namespace
}  // namespace flashloom
