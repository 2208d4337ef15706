#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

#include "flashloom/io/temporary_directory_for_test.h"
#include "tests/end_to_end/program_for_test.h"

namespace flashloom {
namespace {

using testing::HasSubstr;

class Plan : public ProgramTest {
 protected:
  static void SetUpTestSuite() {
    make_folder();
    // A config alone, as of a model that is not downloaded.
    std::filesystem::create_directories(*folder_ / "config_only");
    write_file_atomically(*folder_ / "config_only/config.json",
                          read_for_test(*folder_ / "model/config.json"));
    std::string rows;
    for (int i = 0; i < 60; ++i) {
      rows += R"({"text": "Some words, a few more, and the number )" + std::to_string(i) + "\"}\n";
    }
    write_file_atomically(*folder_ / "train.jsonl", rows);
  }

  static nlohmann::json plan(const std::string& arguments) {
    const ProgramResult result = run("plan --json --threads 2 --model " +
                                     std::string(*folder_ / "config_only ") + arguments);
    EXPECT_EQ(result.code, 0) << result.err;
    return nlohmann::json::parse(result.out);
  }
};

TEST_F(Plan, ShowsEveryChoiceFromAConfigAlone) {
  const nlohmann::json json = plan("--method full --seq-len 64 --batch-tokens 256 --memory 1GB");
  EXPECT_EQ(json.at("budget"), 1'000'000'000);
  EXPECT_EQ(json.at("choices").size(), 4U * 2 * 2 * 3);
  for (const nlohmann::json& choice : json.at("choices")) {
    int64_t sum = 0;
    for (const char* kind : {"weights", "adapters", "gradients", "optimizer_state", "activations",
                             "workspace", "process"}) {
      sum += choice.at(kind).get<int64_t>();
    }
    EXPECT_EQ(choice.at("bytes"), sum);
    EXPECT_GE(choice.at("relative_time"), 1);
  }
  EXPECT_TRUE(json.at("proposal").at("fits"));
  const ProgramResult table = run("plan --model " + std::string(*folder_ / "model"));
  EXPECT_EQ(table.code, 0) << table.err;
  EXPECT_THAT(table.out, HasSubstr("activations"));
  EXPECT_THAT(table.out, HasSubstr("flashloom finetune --model "));
}

TEST_F(Plan, NarrowsToWhatIsAskedFor) {
  const std::string flags =
      "--method full --seq-len 64 --batch-tokens 64 --memory 1GB --optimizer adamw8bit "
      "--weight-dtype bf16 --recompute attention --freeze '*.k_proj.*' 1";
  const nlohmann::json json = plan(flags);
  ASSERT_EQ(json.at("choices").size(), 1U);
  EXPECT_EQ(json.at("proposal").at("recompute"), "attention");
  const std::string command = json.at("command");
  EXPECT_EQ(command,
            "flashloom finetune --model " + std::string(*folder_ / "config_only") +
                " --method full --seq-len 64 --batch-tokens 64 --recompute attention --optimizer "
                "adamw8bit --weight-dtype bf16 --freeze '*.k_proj.*' 1 --memory 1GB --threads 2 "
                "--data train.jsonl --output run");
  const ProgramResult text =
      run("plan --threads 2 --model " + std::string(*folder_ / "config_only ") + flags);
  EXPECT_THAT(text.out, testing::EndsWith("\n" + command + "\n"));
}

TEST_F(Plan, CountsWhatIsFrozen) {
  const std::string flags = "--method full --seq-len 64 --batch-tokens 64 --memory 1GB ";
  const nlohmann::json all = plan(flags).at("choices").at(0);
  const nlohmann::json upper = plan(flags + "--freeze embeddings,0").at("choices").at(0);
  const nlohmann::json without_k = plan(flags + "--freeze '*.k_proj.*'").at("choices").at(0);
  const auto bytes = [](const nlohmann::json& choice, const char* kind) {
    return choice.at(kind).get<int64_t>();
  };
  EXPECT_EQ(bytes(all, "gradients") - bytes(without_k, "gradients"), 2 * 4 * 16 * 48);
  EXPECT_EQ(bytes(all, "optimizer_state") - bytes(without_k, "optimizer_state"), 2 * 8 * 16 * 48);
  EXPECT_EQ(bytes(all, "activations"), bytes(without_k, "activations"));
  EXPECT_EQ(2 * bytes(upper, "activations"), bytes(all, "activations"));
  EXPECT_LT(bytes(upper, "gradients"), bytes(all, "gradients") / 4);
  const auto refused = [&](const std::string& arguments) {
    return run("plan --model " + std::string(*folder_ / "config_only ") + arguments);
  };
  EXPECT_EQ(refused("--method full --freeze '*.x_proj.*'").code, 2);
  EXPECT_THAT(refused("--freeze '*.k_proj.*'").err, HasSubstr("LoRA trains nothing else"));
  EXPECT_THAT(refused("--freeze 0-1").err, HasSubstr("a layer left to train"));
}

// A run's exit code, its errors, and the largest RssAnon that was seen while it ran.
struct MeasuredRun {
  int code = 0;
  std::string err;
  int64_t peak = 0;
};

// Runs a shell's line in `folder`.
MeasuredRun run_measured(const std::string& line, const std::string& folder) {
  const std::string program_folder = std::filesystem::path(FLASHLOOM_PROGRAM).parent_path();
  const std::string shell = "cd " + folder + " && export PATH=" + program_folder +
                            ":$PATH && exec " + line + " >stdout.txt 2>stderr.txt";
  std::array<const char*, 4> arguments = {"sh", "-c", shell.c_str(), nullptr};
  pid_t child = 0;
  MeasuredRun run;
  if (posix_spawn(&child, "/bin/sh", nullptr, nullptr, const_cast<char**>(arguments.data()),
                  environ) != 0) {
    throw std::runtime_error("posix_spawn failed");
  }
  int status = 0;
  while (waitpid(child, &status, WNOHANG) == 0) {
    std::ifstream file("/proc/" + std::to_string(child) + "/status");
    for (std::string word; file >> word;) {
      if (word == "RssAnon:") {
        int64_t kilobytes = 0;
        file >> kilobytes;
        run.peak = std::max(run.peak, kilobytes * 1024);
        break;
      }
    }
    usleep(1000);
  }
  run.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  run.err = read_for_test(folder + "/stderr.txt");
  return run;
}

TEST_F(Plan, ItsCommandLineRunsAndTakesWhatItSays) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the sanitizer keeps freed memory and a shadow of all";
#endif
  ModelConfig config = tiny_config();
  config.hidden_size = 256;
  config.intermediate_size = 768;
  config.layers = 6;
  config.heads = 4;
  config.head_dim = 64;
  const std::string folder = *folder_ / "planned";
  write_tiny_model(folder + "/model", config);
  std::string text;
  for (int i = 0; i < 300; ++i) {
    text += " some words";
  }
  write_file_atomically(folder + "/train.jsonl",
                        "{\"text\": \"" + text + "\"}\n{\"text\": \"" + text + " more\"}\n");
  for (const std::string flags : {"--method full --freeze '*.k_proj.*' embeddings 0 --recompute "
                                  "none --micro-batch-tokens 300",
                                  "--method full --bf16-updates master --memory 90MB",
                                  "--lora-rank 32 --lora-targets q v down --freeze 0-1"}) {
    SCOPED_TRACE(flags);
    std::filesystem::remove_all(folder + "/run");
    const ProgramResult planned = run_program(
        "plan --json --model model --seq-len 256 --batch-tokens 512 --threads 2 " + flags, folder,
        "cd " + folder + " &&");
    ASSERT_EQ(planned.code, 0) << planned.err;
    const nlohmann::json json = nlohmann::json::parse(planned.out);
    const auto expected = json.at("proposal").at("bytes").get<int64_t>();
    const auto process = json.at("proposal").at("process").get<int64_t>();
    const MeasuredRun run = run_measured(json.at("command"), folder);
    ASSERT_EQ(run.code, 0) << json.at("command") << "\n" << run.err;
    EXPECT_TRUE(std::filesystem::exists(folder + "/run/metrics.jsonl"));
    // Of the room for the program, its tokenizer and what saving takes, this small one needs
    // little; all else is used.
    EXPECT_LE(run.peak, expected);
    EXPECT_GE(run.peak, expected - process);
    std::printf("%s: plan %.1f MB, of them %.1f MB for the program; peak %.1f MB\n", flags.c_str(),
                static_cast<double>(expected) / 1e6, static_cast<double>(process) / 1e6,
                static_cast<double>(run.peak) / 1e6);
  }
}

TEST_F(Plan, NamesTheSmallestIfNothingFits) {
  const ProgramResult result =
      run("plan --memory 5MB --model " + std::string(*folder_ / "config_only"));
  EXPECT_EQ(result.code, 1);
  EXPECT_THAT(result.err, HasSubstr("nothing fits; the smallest needs"));
  EXPECT_EQ(run("plan --memory much --model " + std::string(*folder_ / "model")).code, 2);
  EXPECT_EQ(run("plan --model " + std::string(*folder_ / "nowhere")).code, 1);
}

TEST_F(Plan, FinetuneRefusesAtOnceWhatDoesNotFit) {
  const std::string training = "finetune --method full --model " +
                               std::string(*folder_ / "model --data ") +
                               std::string(*folder_ / "train.jsonl --output ") +
                               std::string(*folder_ / "refused --batch-tokens 256 --seq-len 64 ");
  const ProgramResult nothing = run(training + "--memory 1MB");
  EXPECT_EQ(nothing.code, 1);
  EXPECT_THAT(nothing.err, HasSubstr("nothing fits"));
  // Before the data is read.
  EXPECT_THAT(nothing.err, testing::Not(HasSubstr("bear loss")));
  const ProgramResult enough = run(training + "--steps 1 --memory 1GB");
  EXPECT_EQ(enough.code, 0) << enough.err;
  EXPECT_THAT(enough.err, HasSubstr("program, tokenizer, data"));
}

}  // namespace
}  // namespace flashloom
