#include "flashloom/train/report/run_facts.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <numeric>

#include "flashloom/io/temporary_directory_for_test.h"

namespace flashloom {
namespace {

using testing::ElementsAre;

nlohmann::json facts_of(const std::string& output) {
  return nlohmann::json::parse(std::ifstream(output + "/facts.json"));
}

TEST(RunFacts, CountsDocumentsByLength) {
  TokenDocuments documents;
  for (const size_t length : {1, 4, 5, 9, 9, 23}) {
    documents.add(std::vector<int32_t>(length, 7), std::vector<uint8_t>(length, 1));
  }
  const DataFacts facts = data_facts(documents, 5);
  EXPECT_THAT(facts.lengths, ElementsAre(2, 3, 0, 0, 1));
  EXPECT_EQ(facts.shortest, 1);
  EXPECT_EQ(facts.median, 9);
  EXPECT_EQ(facts.longest, 23);
  EXPECT_EQ(facts.tokens, 51);
  EXPECT_EQ(facts.loss_tokens, 45);
  EXPECT_THAT(data_facts(TokenDocuments(), 5).lengths, testing::IsEmpty());
}

TEST(RunFacts, ChoosesRoundBarsAtMost32OfThem) {
  EXPECT_EQ(length_bin(1), 1);
  EXPECT_EQ(length_bin(31), 1);
  EXPECT_EQ(length_bin(32), 2);
  EXPECT_EQ(length_bin(100), 5);
  EXPECT_EQ(length_bin(1024), 50);
  EXPECT_EQ(length_bin(1'000'000), 50'000);
  for (int64_t longest = 1; longest < 5000; longest += 7) {
    const int64_t bars = longest / length_bin(longest) + 1;
    EXPECT_LE(bars, 32) << longest;
    EXPECT_GE(bars * 5, std::min<int64_t>(longest, 32)) << longest;
  }
}

TEST(RunFacts, AreRecalledByTheProcessThatGoesOn) {
  const TemporaryDirectory folder;
  RunFacts facts = {.started = format_time(0), .state = "running"};
  facts.samples = {{.prompt = "q\xff", .expected = "a", .before = "b"}};
  facts.sample_seconds = 1.5;
  write_run_facts(folder.path(), facts);
  RunFacts later = {.started = format_time(86'400)};
  recall_run_facts(folder.path(), later);
  EXPECT_EQ(later.started, "1970-01-01T00:00:00Z");
  ASSERT_EQ(later.samples.size(), 1u);
  EXPECT_EQ(later.samples[0].prompt, "q\xef\xbf\xbd");  // not UTF-8: replaced
  EXPECT_EQ(later.samples[0].before, "b");
  EXPECT_EQ(later.samples[0].after, std::nullopt);
  EXPECT_EQ(later.sample_seconds, 1.5);
}

TEST(RunFacts, TellNothingIfDamaged) {
  const TemporaryDirectory folder;
  RunFacts facts = {.started = "now"};
  recall_run_facts(folder.path(), facts);
  for (const char* text : {"", "[]", "{\"samples\": 3}", "{\"samples\": [], \"started\": 4}"}) {
    overwrite_for_test(folder / "facts.json", text);
    recall_run_facts(folder.path(), facts);
    EXPECT_EQ(facts.started, "now") << text;
  }
}

TEST(RunFacts, SayWhyARunFailedUnlessItHadEndedBefore) {
  const TemporaryDirectory folder;
  record_failure(folder.path(), "no facts yet");
  EXPECT_FALSE(std::filesystem::exists(folder / "facts.json"));
  RunFacts facts = {.state = "running"};
  write_run_facts(folder.path(), facts);
  record_failure(folder.path(), "the loss is not finite");
  EXPECT_EQ(facts_of(folder.path()).at("state"), "failed");
  EXPECT_EQ(facts_of(folder.path()).at("failure"), "the loss is not finite");
  facts.state = "finished";
  write_run_facts(folder.path(), facts);
  record_failure(folder.path(), "other settings");
  EXPECT_EQ(facts_of(folder.path()).at("state"), "finished");
}

}  // namespace
}  // namespace flashloom
