#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>

#include "flashloom/core/philox.h"
#include "flashloom/io/directory_lock.h"
#include "flashloom/io/temporary_directory_for_test.h"
#include "tests/end_to_end/program_for_test.h"

namespace flashloom {
namespace {

using testing::HasSubstr;

class Resume : public ProgramTest {
 protected:
  static void SetUpTestSuite() {
    make_folder();
    write_file_atomically(path("train.jsonl"), prompt_rows(60));
    write_file_atomically(path("held.jsonl"), prompt_rows(6));
    // The run that nobody disturbed.
    const auto start = std::chrono::steady_clock::now();
    const ProgramResult result = run(training("whole", kSteps));
    whole_seconds_ = std::chrono::duration<float>(std::chrono::steady_clock::now() - start).count();
    ASSERT_EQ(result.code, 0) << result.err;
  }

  // Runs a command until it ends by itself, ended before up to `most` times by a signal at random
  // moments; where it was done before the first, it starts anew with half the time. Says how often
  // it was ended.
  static int run_ended_by(const char* signal, int most, const std::string& output,
                          const std::string& command) {
    RandomSequence random(11, RandomStream::test);
    int ended = 0;
    for (float longest = whole_seconds_ / 2; ended == 0 && longest > 0.005F; longest /= 2) {
      std::filesystem::remove_all(path(output));
      ProgramResult result;
      do {
        const std::string killer = ended < most ? fmt::format("timeout -s {} {:.3f}", signal,
                                                              random.uniform(0.2F, 1.0F) * longest)
                                                : "";
        result = run(command + fmt::format("--threads {}", 1 + ended % 3), killer);
        ended += result.code == 0 ? 0 : 1;
      } while (result.code != 0 && ended <= most);
      EXPECT_EQ(result.code, 0) << result.err;
    }
    return ended;
  }

  static std::string training(const std::string& output, int steps, const char* rate = "1e-2") {
    return fmt::format(
        "finetune --model {} --data {} --eval-data {} --output {} --batch-tokens 128 --lr {} "
        "--warmup 3 --eval-steps 4 --save-steps 2 --steps {} ",
        path("model"), path("train.jsonl"), path("held.jsonl"), path(output), rate, steps);
  }

  // What the log says of training, without the times.
  static std::vector<std::string> history(const std::string& output) {
    std::vector<std::string> lines;
    std::istringstream text(read_for_test(path(output) + "/metrics.jsonl"));
    for (std::string line; std::getline(text, line);) {
      const auto json = nlohmann::json::parse(line);
      const auto field = [&](const char* name) {
        return json.value(name, nlohmann::json()).dump();
      };
      lines.push_back(fmt::format("{} {} {} {}", field("step"), field("loss"), field("eval_loss"),
                                  field("finding")));
    }
    return lines;
  }

  static void expect_the_whole_run(const std::string& output) {
    EXPECT_TRUE(adapter(output) == adapter("whole"));
    EXPECT_TRUE(adapter(output + "/best") == adapter("whole/best"));
    EXPECT_EQ(history(output), history("whole"));
  }

  static constexpr int kSteps = 30;
  static float whole_seconds_;  // of the run that nobody disturbed
};

float Resume::whole_seconds_ = 0;

TEST_F(Resume, EndsInTheSameBitsHoweverOftenItIsKilled) {
  EXPECT_GE(run_ended_by("KILL", 6, "killed", training("killed", kSteps)), 1);
  expect_the_whole_run("killed");
}

TEST_F(Resume, EndsInTheSameBitsWithEveryOptionThatDrawsNumbersOrLeavesPartsOut) {
  const std::string lora = "--schedule wsd --neftune 5 --rslora --freeze 0 --min-lr 0.1 ";
  const std::string full =
      "--method full --schedule linear --neftune 5 --weight-decay 0.1 "
      "--freeze embeddings,1 ";
  for (const std::string& options : {lora, full}) {
    const std::string file = options == full ? "/model.safetensors" : "/adapter_model.safetensors";
    const std::string whole = options == full ? "full_whole" : "lora_whole";
    const auto command = [&](const std::string& output) { return training(output, 12) + options; };
    ASSERT_EQ(run(command(whole)).code, 0);
    EXPECT_GE(run_ended_by("KILL", 3, whole + "_killed", command(whole + "_killed")), 1) << options;
    EXPECT_TRUE(read_for_test(path(whole) + file) == read_for_test(path(whole + "_killed") + file))
        << options;
    const ProgramResult other =
        run(training(whole, 12) + (options == full ? "--method full " : ""));
    EXPECT_EQ(other.code, 1);
    for (const char* name : {"schedule: was", "neftune: was", "freeze: was"}) {
      EXPECT_THAT(other.err, HasSubstr(name));
    }
  }
}

TEST_F(Resume, IsExactWithWeightsAndMomentsInFewerBits) {
  const std::string flags = "--method full --weight-dtype bf16 --guards off --lr 1e-3 ";
  const auto training = [&](const std::string& output, int steps,
                            const char* optimizer = "adamw8bit") {
    return fmt::format(
        "finetune --model {} --data {} --output {} --batch-tokens 128 --steps {} {}"
        "--optimizer {} ",
        path("model"), path("train.jsonl"), path(output), steps, flags, optimizer);
  };
  ASSERT_EQ(run(training("small_whole", 8) + "--threads 1 --recompute none").code, 0);
  // Two runs to 8 steps with the schedule of 8: the first is stopped by its signal after a save.
  const ProgramResult stopped =
      run(training("small_parts", 8) + "--threads 2 --save-steps 1", "timeout -s INT 0.6");
  ASSERT_TRUE(stopped.code == 0 || stopped.code == 130 || stopped.code == 124) << stopped.err;
  const ProgramResult rest = run(training("small_parts", 8) + "--threads 3 --recompute blocks");
  ASSERT_EQ(rest.code, 0) << rest.err;
  EXPECT_TRUE(read_for_test(path("small_parts/model.safetensors")) ==
              read_for_test(path("small_whole/model.safetensors")));
  const ProgramResult other = run(training("small_parts", 8, "adamw"));
  EXPECT_NE(other.code, 0);
  EXPECT_THAT(other.err, HasSubstr("optimizer: was \"adamw8bit\", now \"adamw\""));
}

TEST_F(Resume, LeavesAFinishedRunAsItIsAndContinuesItForMoreSteps) {
  ASSERT_EQ(run(training("more", 10)).code, 0);
  const std::string ten = adapter("more");
  const ProgramResult again = run(training("more", 10));
  EXPECT_EQ(again.code, 0) << again.err;
  EXPECT_THAT(again.err, HasSubstr("finished after 10 steps"));
  EXPECT_TRUE(adapter("more") == ten);

  const ProgramResult more = run(training("more", 12));
  EXPECT_EQ(more.code, 0) << more.err;
  EXPECT_THAT(more.err, HasSubstr("going on after step 10"));
  EXPECT_FALSE(adapter("more") == ten);
  const ProgramResult fewer = run(training("more", 8));
  EXPECT_NE(fewer.code, 0);
  EXPECT_THAT(fewer.err, HasSubstr("at least the 12"));
}

TEST_F(Resume, KeepsTheLastTwoCheckpoints) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(path("whole"))) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("checkpoint")) {
      names.push_back(name);
    }
  }
  EXPECT_THAT(names, testing::UnorderedElementsAre("checkpoint-28", "checkpoint-30"));
}

TEST_F(Resume, PassesOverDamagedCheckpointsAndSaysSo) {
  for (const char* file :
       {"training_state.safetensors", "checkpoint.json", "adapter_model.safetensors"}) {
    for (const bool cut : {false, true}) {
      const std::string output = fmt::format("damaged_{}_{}", file, cut);
      std::filesystem::copy(path("whole"), path(output), std::filesystem::copy_options::recursive);
      const std::string victim = path(output) + "/checkpoint-30/" + file;
      std::string bytes = read_for_test(victim);
      if (cut) {
        bytes.resize(bytes.size() / 2);
      } else {
        bytes[bytes.size() / 2] ^= 4;
      }
      write_file_atomically(victim, bytes);
      const ProgramResult result = run(training(output, kSteps));
      EXPECT_EQ(result.code, 0) << result.err;
      EXPECT_THAT(result.err, HasSubstr("damaged"));
      EXPECT_THAT(result.err, HasSubstr(file));
      EXPECT_THAT(result.err, HasSubstr("going on after step 28"));
      expect_the_whole_run(output);
    }
  }
}

TEST_F(Resume, NamesTheSettingsAndTheDataThatDiffer) {
  const ProgramResult settings = run(training("whole", kSteps, "2e-2") + "--seed 3 --lora-rank 8");
  EXPECT_NE(settings.code, 0);
  EXPECT_THAT(settings.err, HasSubstr("learning_rate: was 0.01, now 0.02"));
  EXPECT_THAT(settings.err, HasSubstr("seed: was 0, now 3"));
  EXPECT_THAT(settings.err, HasSubstr("lora_rank: was 16, now 8"));

  const ProgramResult data = run(training("whole", kSteps) + "--data " + path("held.jsonl"));
  EXPECT_NE(data.code, 0);
  EXPECT_THAT(data.err, HasSubstr("\n  data: was"));
  EXPECT_THAT(data.err, testing::Not(HasSubstr("eval_data")));
}

TEST_F(Resume, NamesTheDataOptionsThatDiffer) {
  const ProgramResult result =
      run(training("whole", kSteps) + "--seq-len 8 --long split --data " + path("held.jsonl:2.5"));
  EXPECT_NE(result.code, 0);
  EXPECT_THAT(result.err, HasSubstr("seq_len: was \"1024\", now \"8\""));
  EXPECT_THAT(result.err, HasSubstr("long: was \"cut\", now \"split\""));
  EXPECT_THAT(result.err, HasSubstr("data_weights: was \"1\", now \"1, 2.5\""));
}

TEST_F(Resume, RefusesDataThatChangedBetweenRuns) {
  write_file_atomically(path("changing.jsonl"), read_for_test(path("train.jsonl")));
  const std::string line =
      fmt::format("finetune --model {} --data {} --output {} --batch-tokens 128 --save-steps 2 ",
                  path("model"), path("changing.jsonl"), path("changed"));
  ASSERT_EQ(run(line + "--steps 4").code, 0);
  const std::string before = adapter("changed");
  std::string rows = read_for_test(path("changing.jsonl"));
  rows.replace(rows.find("number 7?"), 9, "number 8?");
  write_file_atomically(path("changing.jsonl"), rows);
  const ProgramResult result = run(line + "--steps 8");
  EXPECT_EQ(result.code, 1);
  EXPECT_THAT(result.err, HasSubstr("other settings:\n  data: was"));
  EXPECT_TRUE(adapter("changed") == before);
}

TEST_F(Resume, StartsAnewIfAsked) {
  ASSERT_EQ(run(training("anew", 4) + "--seed 5").code, 0);
  const ProgramResult result = run(training("anew", kSteps) + "--resume never");
  ASSERT_EQ(result.code, 0) << result.err;
  expect_the_whole_run("anew");
}

TEST_F(Resume, GoesOnAfterAnInterrupt) {
  EXPECT_GE(run_ended_by("INT", 3, "interrupted", training("interrupted", kSteps)), 1);
  expect_the_whole_run("interrupted");
}

TEST_F(Resume, KeepsASecondRunOutOfTheDirectory) {
  std::filesystem::create_directories(path("busy"));
  const DirectoryLock lock(path("busy"));
  const ProgramResult result = run(training("busy", 2));
  EXPECT_NE(result.code, 0);
  EXPECT_THAT(result.err, HasSubstr("is writing to this directory"));
}

}  // namespace
}  // namespace flashloom
