// The reports of runs of the built program: what a run leaves, the pages, the comparison.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "flashloom/io/temporary_directory_for_test.h"
#include "tests/end_to_end/program_for_test.h"

namespace flashloom {
namespace {

using testing::HasSubstr;

class Report : public ProgramTest {
 protected:
  static void SetUpTestSuite() {
    make_folder();
    const std::string answer = "It is the one.";
    write_file_atomically(path("train.jsonl"), chat_rows(40, answer));
    write_file_atomically(path("held.jsonl"), chat_rows(9, answer));
    const ProgramResult result =
        run(training("whole") + "--steps 24 --eval-steps 6 --save-steps 5 --tensorboard");
    ASSERT_EQ(result.code, 0) << result.err;
    EXPECT_THAT(result.err, HasSubstr("wrote " + path("whole/report.html")));
  }

  static std::string training(const std::string& output) {
    return "finetune --model " + path("model") + " --data " + path("train.jsonl") +
           " --eval-data " + path("held.jsonl") + " --output " + path(output) +
           " --batch-tokens 256 --lr 1e-2 --threads 1 ";
  }

  static nlohmann::json facts(const std::string& output) {
    return nlohmann::json::parse(read_for_test(path(output) + "/facts.json"));
  }
};

TEST_F(Report, ARunWritesDownWhatAReportNeeds) {
  const nlohmann::json json = facts("whole");
  EXPECT_EQ(json.at("state"), "finished");
  EXPECT_EQ(json.at("steps"), 24);
  EXPECT_THAT(json.at("program").get<std::string>(), testing::StartsWith("flashloom "));
  EXPECT_EQ(json.at("model").at("path"), path("model"));
  EXPECT_GT(json.at("model").at("trained_parameters"), 0);
  EXPECT_LT(json.at("model").at("trained_parameters"), json.at("model").at("parameters"));
  const nlohmann::json& train = json.at("data").at("train");
  EXPECT_EQ(train.at("documents"), 40);
  EXPECT_EQ(train.at("files").at(0), path("train.jsonl"));
  EXPECT_THAT(train.at("rows").get<std::string>(), HasSubstr("40 rows, 40 examples"));
  const auto counts = train.at("lengths").get<std::vector<int64_t>>();
  EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), int64_t{0}), 40);
  EXPECT_EQ(json.at("data").at("held_out").at("documents"), 9);
  int64_t bytes = 0;
  for (const nlohmann::json& row : json.at("memory").at("rows")) {
    bytes += row.at("bytes").get<int64_t>();
  }
  EXPECT_EQ(json.at("memory").at("planned_bytes"), bytes);
  EXPECT_GT(json.at("memory").at("peak_bytes"), 0);
}

TEST_F(Report, ARunAnswersQuestionsBeforeAndAfter) {
  const nlohmann::json samples = facts("whole").at("samples");
  ASSERT_EQ(samples.size(), 3u);
  for (const nlohmann::json& sample : samples) {
    EXPECT_THAT(sample.at("prompt").get<std::string>(),
                HasSubstr("<|im_start|>user\nWhat is number"));
    EXPECT_EQ(sample.at("expected"), "It is the one.");
    const auto begins = testing::StartsWith("It is the one");
    EXPECT_THAT(sample.at("before").get<std::string>(), testing::Not(begins));
    EXPECT_THAT(sample.at("after").get<std::string>(), begins);
  }
  // Answers cost no weights: a run without them has the same.
  const ProgramResult result = run(training("silent") + "--steps 24 --samples 0");
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_TRUE(facts("silent").at("samples").empty());
  EXPECT_TRUE(read_for_test(path("silent/adapter_model.safetensors")) ==
              read_for_test(path("whole/adapter_model.safetensors")));
  EXPECT_FALSE(std::filesystem::exists(path("silent/tensorboard")));
}

TEST_F(Report, WritesEventFilesOfEachProcessOfARun) {
  const auto files = [](const std::string& output) {
    return std::distance(std::filesystem::directory_iterator(path(output + "/tensorboard")), {});
  };
  EXPECT_EQ(files("whole"), 1);
  ASSERT_EQ(run(training("twice") + "--steps 4 --tensorboard").code, 0);
  ASSERT_EQ(run(training("twice") + "--steps 6 --tensorboard").code, 0);
  EXPECT_EQ(files("twice"), 2);
  // The answers from before the first step are still known to the second process.
  EXPECT_TRUE(facts("twice").at("samples").at(0).contains("before"));
  EXPECT_EQ(facts("twice").at("steps"), 6);
  ASSERT_EQ(run(training("twice") + "--steps 2 --resume never --tensorboard").code, 0);
  EXPECT_EQ(files("twice"), 1);
  std::string all;
  for (const auto& entry : std::filesystem::directory_iterator(path("whole/tensorboard"))) {
    all += read_for_test(entry.path());
  }
  for (const char* tag :
       {"loss/train", "loss/held_out", "optimizer/learning_rate", "optimizer/gradient_norm",
        "tokens_per_second/all", "tokens_per_second/real", "tokens_per_second/loss_bearing",
        "machine/mfu", "machine/memory_bytes"}) {
    EXPECT_THAT(all, HasSubstr(tag));
  }
}

TEST_F(Report, IsWrittenAgainOnDemand) {
  const ProgramResult result = run("report " + path("whole") + " --output " + path("page.html"));
  ASSERT_EQ(result.code, 0) << result.err;
  EXPECT_TRUE(read_for_test(path("page.html")) == read_for_test(path("whole/report.html")));
  const ProgramResult nothing = run("report " + path("model"));
  EXPECT_EQ(nothing.code, 1);
  EXPECT_THAT(nothing.err, HasSubstr("expected the --output of a run"));
  EXPECT_EQ(run("report").code, 2);
}

TEST_F(Report, SaysWhyARunFailed) {
  // Huge steps end in numbers that are not finite.
  const ProgramResult result =
      run("finetune --model " + path("model") + " --data " + path("train.jsonl") + " --output " +
          path("failed") + " --method full --lr 1e30 --clip 0 --steps 20 --samples 0");
  ASSERT_EQ(result.code, 1) << result.err;
  EXPECT_EQ(facts("failed").at("state"), "failed");
  EXPECT_THAT(facts("failed").at("failure").get<std::string>(), HasSubstr("is not finite in step"));
  EXPECT_TRUE(std::filesystem::exists(path("failed/report.html")));
}

TEST_F(Report, AFullDiskCostsTheReportAlone) {
  // Room for all that training writes, none for a page of more than 60 kB.
  std::filesystem::remove(path("whole/report.html"));
  const ProgramResult result =
      run("report " + path("whole"), "bash -c 'ulimit -f 20; exec \"$@\"' -");
  EXPECT_EQ(result.code, 1);
  EXPECT_THAT(result.err, HasSubstr("report.html"));
  EXPECT_FALSE(std::filesystem::exists(path("whole/report.html")));
  ASSERT_EQ(run("report " + path("whole")).code, 0);
}

TEST_F(Report, ComparesRuns) {
  ASSERT_EQ(run(training("narrow") + "--steps 12 --lora-rank 4 --samples 0").code, 0);
  const std::string both = path("whole") + " " + path("narrow");
  const ProgramResult text = run("compare " + both);
  ASSERT_EQ(text.code, 0) << text.err;
  EXPECT_THAT(text.out, testing::ContainsRegex("settings +whole +narrow\n"));
  EXPECT_THAT(text.out, testing::ContainsRegex("  lora_rank +16 +4\n"));
  EXPECT_THAT(text.out, HasSubstr("data: the same\n"));
  const ProgramResult json = run("compare --json " + both + " --output " + path("compare.html"));
  ASSERT_EQ(json.code, 0) << json.err;
  const auto outcome = nlohmann::json::parse(json.out).at("outcome");
  EXPECT_EQ(outcome.at(0).at("name"), "eval_loss_after");
  EXPECT_LT(outcome.at(0).at("values").at(0), outcome.at(0).at("values").at(1));
  EXPECT_EQ(outcome.at(0).at("best"), 0);
  EXPECT_THAT(read_for_test(path("compare.html")), HasSubstr("<title>whole · narrow · Flashloom"));
  EXPECT_EQ(run("compare " + path("whole")).code, 2);
  EXPECT_EQ(run("compare " + path("whole") + " " + path("model")).code, 1);
}

}  // namespace
}  // namespace flashloom
