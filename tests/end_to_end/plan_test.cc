#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "flashloom/io/temporary_directory_for_test.h"
#include "tests/end_to_end/program_for_test.h"

namespace flashloom {
namespace {

using testing::HasSubstr;

class Plan : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TemporaryDirectory();
    write_tiny_model(*folder_ / "model");
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

  static void TearDownTestSuite() { delete folder_; }

  static ProgramResult run(const std::string& arguments) {
    return run_program(arguments, folder_->path());
  }

  static nlohmann::json plan(const std::string& arguments) {
    const ProgramResult result = run("plan --json --threads 2 --model " +
                                     std::string(*folder_ / "config_only ") + arguments);
    EXPECT_EQ(result.code, 0) << result.err;
    return nlohmann::json::parse(result.out);
  }

  static TemporaryDirectory* folder_;
};

TemporaryDirectory* Plan::folder_ = nullptr;

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

TEST_F(Plan, ProposesWhatFinetuneAccepts) {
  const nlohmann::json all = plan("--method full --seq-len 64 --batch-tokens 256 --memory 1GB");
  int64_t least = INT64_MAX;
  for (const nlohmann::json& choice : all.at("choices")) {
    least = std::min(least, choice.at("bytes").get<int64_t>());
  }
  // Half a megabyte more than the smallest: the default does not fit, the proposal does.
  const std::string budget = std::to_string(least + (1 << 19));
  const std::string flags = " --method full --seq-len 64 --batch-tokens 256 --memory " + budget;
  const std::string command = plan(flags).at("command");
  EXPECT_THAT(command, HasSubstr("--recompute "));
  EXPECT_THAT(command, HasSubstr("--memory " + budget));
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
