#include "flashloom/train/report/run_folder.h"

#include <gmock/gmock.h>

#include <cmath>
#include <filesystem>

#include "flashloom/core/error.h"
#include "flashloom/io/temporary_directory_for_test.h"
#include "flashloom/train/report/run_comparison.h"
#include "flashloom/train/report/run_outcome.h"

namespace flashloom {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kLog =
    R"({"step":0,"eval_loss":3.5,"eval_tokens":9}
{"step":1,"loss":3.0,"seconds":2.0,"all_tokens_per_second":100.0,"loss_tokens_per_second":10.0,"mfu":0.5,"packing":0.9,"largest_gradient":"a","memory_bytes":1000}
{"step":1,"guard":"updates","finding":"It stands still."}
{"step":2,"loss":2.0,"seconds":1.0,"all_tokens_per_second":400.0,"loss_tokens_per_second":40.0,"mfu":0.8,"packing":0.7,"largest_gradient":"b","memory_bytes":3000}
{"step":2,"eval_loss":2.5,"eval_tokens":9}
)";

class RunFolderTest : public testing::Test {
 protected:
  RunFolder read(const std::string& name, const std::string& log, const std::string& run = "",
                 const std::string& facts = "") {
    std::filesystem::create_directories(folder_ / name);
    const auto write = [&](const char* file, const std::string& text) {
      if (!text.empty()) {
        overwrite_for_test(folder_ / name + "/" + file, text);
      }
    };
    write("metrics.jsonl", log);
    write("run.json", run);
    write("facts.json", facts);
    return read_run_folder(folder_ / name);
  }

  TemporaryDirectory folder_;
};

TEST_F(RunFolderTest, ReadsCurvesAndGuards) {
  const RunFolder run = read("run", kLog);
  EXPECT_EQ(run.name, "run");
  EXPECT_TRUE(run.run.is_null());
  ASSERT_NE(run.curve("loss"), nullptr);
  EXPECT_THAT(run.curve("loss")->steps, ElementsAre(1, 2));
  EXPECT_THAT(run.curve("loss")->values, ElementsAre(3.0f, 2.0f));
  EXPECT_THAT(run.curve("eval_loss")->steps, ElementsAre(0, 2));
  EXPECT_EQ(run.curve("largest_gradient"), nullptr);
  EXPECT_EQ(run.curve("step"), nullptr);
  ASSERT_EQ(run.guards.size(), 1u);
  EXPECT_EQ(run.guards[0].step, 1);
  EXPECT_EQ(run.guards[0].finding, "It stands still.");
}

TEST_F(RunFolderTest, TakesNumbersThatAreNotFiniteAndAnUnfinishedLine) {
  const RunFolder run =
      read("run", "{\"step\":1,\"loss\":\"nan\"}\n{\"step\":2,\"loss\":\"inf\"}\n{\"step\":3,\"lo");
  ASSERT_EQ(run.curve("loss")->values.size(), 2u);
  EXPECT_TRUE(std::isnan(run.curve("loss")->values[0]));
  EXPECT_TRUE(std::isnan(run.curve("loss")->values[1]));
  EXPECT_TRUE(read("empty", "", "{}").curves.empty());
}

TEST_F(RunFolderTest, SaysWhatIsDamagedAndWhere) {
  const auto fails = [&](const std::string& log, const std::string& what) {
    EXPECT_THAT([&] { read("bad", log); }, testing::ThrowsMessage<IoError>(HasSubstr(what))) << log;
  };
  fails("{\"step\":1}\n{\"step\":\n{\"step\":3}\n", "line 2");
  fails("{\"loss\":1}\n{\"step\":3}\n", "line 1");
  fails("[1]\n{\"step\":3}\n", "line 1");
  fails("{\"step\":-1}\n{\"step\":3}\n", "line 1");
  fails("{\"step\":1e30}\n{\"step\":3}\n", "line 1");
  EXPECT_THROW(read("bad", "{\"step\":1}\n", "[]"), IoError);
  EXPECT_THROW(read("bad", "{\"step\":1}\n", "{"), IoError);
  std::filesystem::create_directories(folder_ / "nothing");
  EXPECT_THAT([&] { read_run_folder(folder_ / "nothing"); },
              testing::ThrowsMessage<IoError>(HasSubstr("there is no metrics.jsonl in it")));
}

TEST_F(RunFolderTest, SumsUpWhatCameOfARun) {
  const RunOutcome outcome = outcome_of(
      read("run", kLog, "", R"({"memory": {"planned_bytes": 5000, "peak_bytes": 2000}})"));
  EXPECT_EQ(outcome.steps, 2);
  EXPECT_EQ(outcome.first_loss, 3.0);
  EXPECT_EQ(outcome.loss, 2.0);
  EXPECT_EQ(outcome.eval_loss_before, 3.5);
  EXPECT_EQ(outcome.eval_loss_after, 2.5);
  EXPECT_EQ(outcome.best_step, 2);
  EXPECT_EQ(outcome.seconds, 3.0);
  EXPECT_EQ(outcome.tokens, 600.0);
  EXPECT_EQ(outcome.tokens_per_second, 200.0);  // 600 tokens in 3 s, not the mean of the rates
  EXPECT_EQ(outcome.loss_tokens_per_second, 20.0);
  EXPECT_NEAR(*outcome.mfu, 0.6, 1e-6);
  EXPECT_NEAR(*outcome.packing, 0.8, 1e-6);
  EXPECT_EQ(outcome.planned_bytes, 5000);
  EXPECT_EQ(outcome.peak_bytes, 3000);
  EXPECT_EQ(outcome.findings, 1);
  const RunOutcome nothing = outcome_of(read("empty", "", "{}"));
  EXPECT_EQ(nothing.loss, std::nullopt);
  EXPECT_EQ(to_json(nothing).dump(), R"({"steps":0,"findings":0})");
}

TEST_F(RunFolderTest, ComparesSettingsDataAndOutcome) {
  std::filesystem::create_directories(folder_ / "a");
  std::vector<RunFolder> runs = {
      read("a/run", kLog, R"({"settings": {"lr": 1, "data": "d1", "rank": 8}})",
           R"({"data": {"train": {"tokens": 10, "lengths": [1]}}, "machine": {"threads": 2}})"),
      read("b/run", R"({"step":1,"loss":1.5})",
           R"({"settings": {"lr": 2, "data": "d2", "rank": 8}})",
           R"({"data": {"train": {"tokens": 20, "lengths": [2]}}, "machine": {"threads": 2}})")};
  const RunComparison comparison = compare_runs(runs);
  EXPECT_THAT(comparison.names, ElementsAre("a/run", "b/run"));
  const auto json = to_json(comparison);
  EXPECT_EQ(json.at("settings").dump(), R"([{"name":"lr","values":[1,2]}])");
  EXPECT_EQ(json.at("data").dump(), R"([{"name":"train.tokens","values":[10,20]},)"
                                    R"({"name":"train.tokens' checksum","values":["d1","d2"]}])");
  const std::string text = describe(comparison);
  EXPECT_THAT(text, HasSubstr("settings  a/run  b/run\n  lr      1      2\n"));
  EXPECT_THAT(text, testing::ContainsRegex("held-out loss after +2.5000 +–\n"));
  // One alone is best, and the better one.
  EXPECT_THAT(text, testing::ContainsRegex("training loss, last tenth +2.0000 +1.5000 \\*\n"));
  const std::vector<RunFolder> copies(2, runs[0]);
  std::vector<RunFolder> same = copies;
  EXPECT_THAT(describe(compare_runs(same)), HasSubstr("settings: the same\n\ndata: the same\n"));
  EXPECT_THROW(compare_runs(std::span(same).first(1)), InvalidArgument);
}

}  // namespace
}  // namespace flashloom
