#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "flashloom/io/temporary_directory_for_test.h"
#include "tests/end_to_end/program_for_test.h"

// `flashloom attend`: every part of the contract from a line of flags, checked against the float64
// reference by the program itself.

namespace flashloom {
namespace {

class Attend : public testing::Test {
 protected:
  ProgramResult run(const std::string& flags) const {
    return run_program("attend --seconds 0 " + flags, folder_.path());
  }

  nlohmann::json json(const std::string& flags) const {
    const ProgramResult result = run("--json " + flags);
    EXPECT_EQ(result.code, 0) << flags << ": " << result.err << result.out;
    return nlohmann::json::parse(result.out);
  }

  std::string path(const std::string& name) const { return folder_.path() + "/" + name; }

  TemporaryDirectory folder_;
};

TEST_F(Attend, ChecksEveryPartOfTheContract) {
  const char* calls[] = {
      "--queries 200 --backward",
      "--queries 130 --keys 190 --causal --heads 6 --kv-heads 2 --dtype bf16 --backward",
      "--queries 130 --left 20 --right 7 --offset -5 --dtype f16 --backward --dlse",
      "--packed 30,1,0,77 --causal --backward",
      "--packed 30,1,77 --packed-keys 40,9,80 --causal",
      "--batch 3 --queries 70 --used-queries 70,0,33 --used-keys 12,70,50 --causal --backward",
      "--queries 150 --softcap 2 --sinks --alibi --bias full --backward",
      "--queries 150 --bias keys --dropout 0.2 --backward",
      "--queries 300 --density 0.4 --partial 0.5 --block-rows 64 --block-keys 32 --backward",
      "--queries 1 --keys 700 --heads 8 --kv-heads 2 --page-size 16 --used-keys 650",
      "--queries 60 --keys 300 --page-size 32 --causal",
      "--queries 200 --drop 0.5 --causal --backward",
      "--queries 200 --buckets 4 --causal --exclude-self --backward",
      "--queries 100 --entropy --backward",
      "--queries 100 --entropy --entropy-order 2 --sinks --backward",
      "--queries 100 --keys 230 --parts 4 --causal --sinks --dtype bf16",
      "--queries 256 --value-dim 24 --gate absolute --threshold 0.5",
  };
  for (const char* flags : calls) {
    const nlohmann::json report = json(std::string("--dim 32 ") + flags);
    EXPECT_EQ(report.at("check"), "ok") << flags;
    const bool backward = std::string(flags).find("--backward") != std::string::npos;
    EXPECT_EQ(report.at("errors").contains("dq"), backward) << flags;
    EXPECT_GT(report.at("forward").at("seconds"), 0) << flags;
  }
}

TEST_F(Attend, EndsWithOneIfAResultIsTooFarOff) {
  const ProgramResult result = run("--queries 50 --tolerance 0");
  EXPECT_EQ(result.code, 1);
  EXPECT_NE(result.out.find("FAILED"), std::string::npos) << result.out;
}

TEST_F(Attend, CountsPairsAndTiles) {
  const nlohmann::json causal = json("--queries 1000 --heads 2 --causal --check never");
  EXPECT_EQ(causal.at("pairs").at("visible"), 2 * 1000 * 1001 / 2);
  EXPECT_EQ(causal.at("pairs").at("all"), 2 * 1000 * 1000);
  const nlohmann::json window = json("--queries 1000 --heads 2 --causal --left 63 --check never");
  EXPECT_EQ(window.at("pairs").at("visible"), 2 * (64 * 1000 - 64 * 63 / 2));
  EXPECT_LT(window.at("tiles").at("full").get<int>() + window.at("tiles").at("border").get<int>(),
            causal.at("tiles").at("full").get<int>() + causal.at("tiles").at("border").get<int>());
  const nlohmann::json blocks =
      json("--queries 1024 --density 0.3 --block-rows 64 --block-keys 64 --check never --heads 1");
  const double kept = blocks.at("pairs").at("visible").get<double>() / (64 * 64);
  EXPECT_EQ(kept, std::floor(kept)) << "whole blocks";
  EXPECT_EQ(blocks.at("tiles").at("border"), 0);
}

TEST_F(Attend, DrawsTheTiles) {
  const std::string picture = path("window.svg");
  const ProgramResult result =
      run("--queries 1024 --left 127 --causal --check never --picture " + picture);
  ASSERT_EQ(result.code, 0) << result.err;
  const std::string svg = read_for_test(picture);
  EXPECT_EQ(svg.rfind("<svg", 0), 0);
  EXPECT_NE(svg.find("</svg>"), std::string::npos);
  EXPECT_NE(svg.find("prefers-color-scheme: dark"), std::string::npos);
  EXPECT_NE(svg.find("class=\"border\""), std::string::npos);
  EXPECT_NE(svg.find("window 127 left"), std::string::npos);
  EXPECT_NE(svg.find("122944 of 1048576 pairs visible"), std::string::npos);
}

TEST_F(Attend, GivesTheSameErrorsForAnyNumberOfThreads) {
  const std::string call = "--queries 300 --causal --backward --heads 4 --threads ";
  EXPECT_EQ(json(call + "1").at("errors"), json(call + "3").at("errors"));
}

// On a GPU the same flags run there; elsewhere the error says why they cannot.
TEST_F(Attend, RunsOnAGpuOrSaysWhyNot) {
  const std::string call = "--json --device cuda --dtype bf16 --heads 4 --kv-heads 2 --dim 64 ";
  for (const char* flags : {"--queries 200 --causal --backward", "--packed 30,1,77 --causal",
                            "--queries 1 --keys 700 --page-size 16", "--queries 50 --parts 3"}) {
    const ProgramResult result = run(call + flags);
    if (result.code == 0) {
      const nlohmann::json report = nlohmann::json::parse(result.out);
      EXPECT_EQ(report.at("check"), "ok") << flags;
      EXPECT_TRUE(report.at("backend") == "sm90" || report.at("backend") == "portable") << flags;
      EXPECT_GT(report.at("forward").at("seconds"), 0) << flags;
    } else {
      EXPECT_EQ(result.code, 2) << flags << ": " << result.err;
      EXPECT_NE(result.err.find("--device: expected cpu in a "), std::string::npos) << result.err;
    }
  }
}

TEST_F(Attend, SaysWhatIsWrong) {
  const std::pair<const char*, const char*> faults[] = {
      {"--dtype f64", "--dtype"},
      {"--heads 6 --kv-heads 4", "--kv-heads"},
      {"--packed 3,x", "--packed"},
      {"--packed 3,4 --packed-keys 3", "--packed-keys"},
      {"--batch 2 --used-keys 3", "--used-keys"},
      {"--density 2", "--density"},
      {"--page-size 16 --backward", "--page-size"},
      {"--dropout 1", "--dropout"},
      {"--parts 2 --backward", "--parts"},
      {"--picture x.svg --picture-head 99", "--picture-head"},
      {"--device cuda --picture x.svg", "--device"},
  };
  for (const auto& [flags, word] : faults) {
    const ProgramResult result = run(flags);
    EXPECT_EQ(result.code, 2) << flags;
    EXPECT_NE(result.err.find(word), std::string::npos) << flags << ": " << result.err;
  }
  EXPECT_EQ(run("--queries 64 --backend cpu --gate absolute --picture /nowhere/x.svg").code, 1);
}

}  // namespace
}  // namespace flashloom
