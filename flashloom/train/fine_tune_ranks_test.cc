// Whole runs of several ranks, which are threads here; tests/end_to_end has them under mpirun.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <filesystem>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

#include "flashloom/comm/thread_ranks_for_test.h"
#include "flashloom/core/philox.h"
#include "flashloom/io/temporary_directory_for_test.h"
#include "flashloom/train/fine_tune.h"

namespace flashloom {
namespace {

TokenDocuments random_documents(int count, uint64_t seed) {
  TokenDocuments documents;
  RandomSequence random(seed, RandomStream::test);
  for (int i = 0; i < count; ++i) {
    std::vector<int32_t> tokens(8 + static_cast<size_t>(i) % 17);
    std::vector<uint8_t> loss(tokens.size(), 1);
    for (size_t t = 0; t < tokens.size(); ++t) {
      tokens[t] = static_cast<int32_t>(random.bits() % 64);
      loss[t] = t > static_cast<size_t>(i) % 7 ? 1 : 0;  // ranks bear loss on unlike numbers
    }
    documents.add(tokens, loss);
  }
  return documents;
}

struct Outcome {
  std::vector<double> losses, held_out;
  FineTuneResult result;
  int64_t optimizer_bytes = 0;
  StepShape shape;
  std::string weights;  // the file
};

class FineTuneRanks : public testing::Test {
 protected:
  FineTuneOptions options(bool lora) {
    FineTuneOptions options = {.optimizer = {.learning_rate = 1e-2},
                               .neftune_alpha = 5,
                               .steps = 8,
                               .batch_tokens = 256,
                               .micro_batch_tokens = 64,
                               .eval_steps = 3,
                               .save_steps = 2,
                               .seed = 4};
    if (!lora) {
      options.lora.reset();
      options.optimizer.learning_rate = 1e-3;
    }
    return options;
  }

  // `stop_after`: the last rank asks to stop after so many steps of this process.
  Outcome run(int ranks, FineTuneOptions options, const std::string& output,
              int stop_after = 1000) {
    options.output = folder_ / output;
    Outcome all;
    run_ranks(ranks, [&](Communicator& communicator) {
      FineTuneOptions own = options;
      own.ranks = &communicator;
      FineTune job(bundle_, documents_, &held_out_, own, std::numeric_limits<int64_t>::max());
      int steps = 0;
      FineTuneObserver observer;
      observer.stop = [&] {
        return communicator.rank() == communicator.size() - 1 && ++steps >= stop_after;
      };
      if (communicator.rank() == 0) {
        observer.stepped = [&](const StepReport& report) { all.losses.push_back(report.loss); };
        observer.evaluated = [&](int64_t, const EvaluationResult& result) {
          all.held_out.push_back(result.loss);
        };
        observer.guarded = [](const GuardFinding& finding) { ADD_FAILURE() << finding.text(); };
      }
      const FineTuneResult result = job.run(observer);
      if (communicator.rank() == 0) {
        all.result = result;
        all.optimizer_bytes = job.plan().kind_bytes(MemoryKind::optimizer);
        all.shape = job.step_shape();
      }
    });
    all.weights = read_for_test(
        options.output + (options.lora ? "/adapter_model.safetensors" : "/model.safetensors"));
    return all;
  }

  static void expect_near(const std::vector<double>& a, const std::vector<double>& b,
                          double tolerance) {
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_NEAR(a[i], b[i], tolerance * std::abs(b[i])) << i;
    }
  }

  // Gradients differ in their last bits (1e-7). Adam's first steps are of the size of the learning
  // rate whatever the gradient's, so where it is nearly 0 they may go the other way: 1e-5 after 8.
  // A lost or doubled micro-batch changes the losses by 1e-2.
  static constexpr double kRounding = 5e-5;

  TemporaryDirectory folder_;
  const std::string golden_ = FLASHLOOM_SOURCE_DIR "/tests/golden/";
  const ModelBundle bundle_ = {
      .path = golden_ + "models/smollm2",
      .files = ModelFiles::open(golden_ + "models/smollm2"),
      .tokenizer = Tokenizer::from_json(read_for_test(golden_ + "text/tokenizer_smollm2.json"),
                                        "tokenizer_smollm2.json")};
  const TokenDocuments documents_ = random_documents(60, 3);
  const TokenDocuments held_out_ = random_documents(9, 5);
};

TEST_F(FineTuneRanks, FollowOneProcessToRoundingAndRepeatThemselvesToTheBit) {
  for (const bool lora : {true, false}) {
    const std::string name = lora ? "lora" : "full";
    const Outcome one = run(1, options(lora), name + "1");
    EXPECT_EQ(one.shape.bins_per_step, 4);
    EXPECT_LT(one.losses.back(), 0.999 * one.losses.front());
    for (const int ranks : {2, 3}) {
      const Outcome many = run(ranks, options(lora), fmt::format("{}{}", name, ranks));
      // The cut of 4 micro-batches is given up for a multiple of 3: other packs, another run.
      EXPECT_EQ(many.shape.bins_per_step, ranks == 2 ? 4 : 6);
      EXPECT_LT(many.optimizer_bytes, one.optimizer_bytes / ranks + (64 << 10));
      EXPECT_EQ(many.held_out.front(), one.held_out.front());  // of the same weights: the same bits
      if (ranks == 2) {
        EXPECT_EQ(many.losses.front(), one.losses.front());  // of the same weights
        expect_near(many.losses, one.losses, kRounding);
        expect_near(many.held_out, one.held_out, kRounding);
        EXPECT_EQ(many.result.state.tokens, one.result.state.tokens);
      }
      const Outcome again = run(ranks, options(lora), fmt::format("{}{}again", name, ranks));
      EXPECT_TRUE(again.weights == many.weights);
      EXPECT_EQ(again.losses, many.losses);
    }
  }
}

TEST_F(FineTuneRanks, GoOnWithAnotherNumberOfRanks) {
  FineTuneOptions quantized = options(/*lora=*/false);
  quantized.weight_dtype = DType::bf16;
  quantized.optimizer.moments = OptimizerMoments::bits8;
  quantized.optimizer.bf16_updates = Bf16Updates::master;
  quantized.guards = false;  // bf16 weights need not move in a step
  for (const FineTuneOptions& chosen : {options(/*lora=*/true), quantized}) {
    const std::string name = chosen.lora ? "lora" : "quantized";
    // bf16 weights may round the other way on the last bit of an update.
    const double tolerance = chosen.lora ? kRounding : 2e-3;
    const Outcome whole = run(1, chosen, name + "whole");
    const Outcome whole2 = run(2, chosen, name + "whole2");
    for (const auto& [before, after] :
         std::vector<std::pair<int, int>>{{1, 2}, {2, 1}, {2, 3}, {2, 2}}) {
      const std::string output = fmt::format("{}{}to{}", name, before, after);
      const Outcome first = run(before, chosen, output, 5);
      EXPECT_TRUE(first.result.stopped);
      EXPECT_EQ(first.result.state.step, 5);
      const Outcome second = run(after, chosen, output);
      EXPECT_EQ(second.result.state.step, 8);
      EXPECT_EQ(second.shape.bins_per_step, 4);  // the run's own, whatever the ranks
      std::vector<double> losses = first.losses;
      losses.insert(losses.end(), second.losses.begin(), second.losses.end());
      expect_near(losses, whole.losses, tolerance);
      if (before == 2 && after == 2) {
        EXPECT_EQ(losses, whole2.losses);
        EXPECT_TRUE(second.weights == whole2.weights);
      }
      // A checkpoint is what one process would have written.
      const auto size = [&](const std::string& of) {
        return std::filesystem::file_size(folder_ /
                                          (of + "/checkpoint-8/training_state.safetensors"));
      };
      EXPECT_EQ(size(output), size(name + "whole"));
    }
  }
}

TEST_F(FineTuneRanks, AFinishedRunIsLeftAsItIs) {
  run(2, options(/*lora=*/true), "done");
  const Outcome again = run(3, options(/*lora=*/true), "done");
  EXPECT_TRUE(again.losses.empty());
  EXPECT_EQ(again.result.state.step, 8);
}

TEST_F(FineTuneRanks, RefuseOtherSettingsTogether) {
  run(1, options(/*lora=*/true), "settings");
  FineTuneOptions other = options(/*lora=*/true);
  other.optimizer.learning_rate = 2e-2;
  EXPECT_THAT([&] { run(2, other, "settings"); },
              testing::ThrowsMessage<Error>(testing::HasSubstr("learning_rate: was 0.01")));
}

}  // namespace
}  // namespace flashloom
