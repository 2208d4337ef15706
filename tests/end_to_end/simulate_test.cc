#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "flashloom/io/temporary_directory_for_test.h"
#include "tests/end_to_end/program_for_test.h"

namespace flashloom {
namespace {

using nlohmann::json;
using testing::HasSubstr;

// `flashloom simulate`: reports, files and refusals from a line of flags.
class Simulate : public testing::Test {
 protected:
  ProgramResult run(const std::string& flags) {
    return run_program("simulate " + flags, folder_.path());
  }

  std::string path(const std::string& name) const { return folder_.path() + "/" + name; }

  TemporaryDirectory folder_;
};

TEST_F(Simulate, ReportsARun) {
  const ProgramResult result = run("--array 16 --seq 40 --head-dim 12 --causal --heads 2 --json");
  ASSERT_EQ(result.code, 0) << result.err;
  const json report = json::parse(result.out);
  EXPECT_GT(report["cycles"].get<int64_t>(), 0);
  EXPECT_GT(report["utilisation"].get<double>(), 0);
  EXPECT_LT(report["utilisation"].get<double>(), report["utilisation_issued"].get<double>());
  EXPECT_GT(report["max_error"].get<double>(), 0);
  EXPECT_LT(report["max_error"].get<double>(), 0.1);
  EXPECT_EQ(report["period"].get<int>(), 93);
  EXPECT_EQ(report["machine"]["rows"].get<int>(), 16);
}

TEST_F(Simulate, TextAndItsMachineReadBack) {
  const ProgramResult text = run("--preset fpga --seq 16 --bandwidth 7.5");
  ASSERT_EQ(text.code, 0) << text.err;
  EXPECT_THAT(text.out, HasSubstr("max_error"));
  const size_t machine = text.out.find("rows = 16");
  ASSERT_NE(machine, std::string::npos);
  write_file_atomically(path("machine.toml"), text.out.substr(machine) + "seq = 16\n");
  const ProgramResult again = run("--config " + path("machine.toml"));
  ASSERT_EQ(again.code, 0) << again.err;
  EXPECT_EQ(again.out.substr(again.out.find("rows = ")), text.out.substr(machine));
  const auto cycles = [](const std::string& out) {
    const size_t at = out.find("cycles  ");
    return out.substr(at, out.find('(', at) - at);
  };
  EXPECT_EQ(cycles(again.out), cycles(text.out));
}

TEST_F(Simulate, SavesListsAndReplaysPrograms) {
  const std::string common = "--array 8 --seq 20 --json ";
  const ProgramResult saved = run(common + "--save-program " + path("p.txt"));
  ASSERT_EQ(saved.code, 0) << saved.err;
  EXPECT_THAT(read_for_test(path("p.txt")), HasSubstr("score_limit"));
  ASSERT_EQ(run(common + "--save-program " + path("p.bin")).code, 0);
  for (const char* name : {"p.txt", "p.bin"}) {
    const ProgramResult replayed = run(common + "--program " + path(name));
    ASSERT_EQ(replayed.code, 0) << replayed.err;
    EXPECT_EQ(json::parse(replayed.out)["cycles"], json::parse(saved.out)["cycles"]);
    EXPECT_EQ(json::parse(replayed.out)["max_error"], json::parse(saved.out)["max_error"]);
  }
  write_file_atomically(path("dead.txt"), "score semaphore=1 acquire=1 acquire_value=1\n");
  const ProgramResult dead = run(common + "--program " + path("dead.txt"));
  EXPECT_EQ(dead.code, 1);
  EXPECT_THAT(dead.err, HasSubstr("a deadlock: matrix: instruction 0 (score) waits for 1 of "
                                  "semaphore 1, which holds 0"));
}

TEST_F(Simulate, WritesTracesAndPictures) {
  const ProgramResult result =
      run("--preset tiny --seq 6 --trace " + path("run") + " --picture " + path("plan.svg"));
  ASSERT_EQ(result.code, 0) << result.err;
  const json trace = json::parse(read_for_test(path("run.json")));
  EXPECT_GT(trace["traceEvents"].size(), 20u);
  EXPECT_THAT(read_for_test(path("run.fst")), HasSubstr("pe_0_0"));
  ASSERT_EQ(run("--preset tiny --seq 6 --trace " + path("other.vcd")).code, 0);
  EXPECT_THAT(read_for_test(path("other.vcd")), HasSubstr("$scope module pe_0_0 $end"));
  EXPECT_EQ(read_for_test(path("other.json")), read_for_test(path("run.json")));
  EXPECT_THAT(read_for_test(path("run.requests.csv")), HasSubstr("instruction,port,kind"));
  EXPECT_THAT(read_for_test(path("plan.svg")), HasSubstr("period 33 cycles"));
}

TEST_F(Simulate, SweepsWriteTablesAndPlots) {
  const ProgramResult result = run(
      "--cycles-only --seq 64 --sweep array=8:16 --sweep slots=2:3 --sweep shadow=0:1 --output " +
      path("sweep"));
  ASSERT_EQ(result.code, 0) << result.err;
  const std::string csv = read_for_test(path("sweep.csv"));
  EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 9);
  EXPECT_THAT(csv, testing::StartsWith("array,slots,shadow,cycles,utilisation,period,"));
  EXPECT_THAT(csv, testing::ContainsRegex("16,3,0,[0-9]+,0\\.[0-9]+,91,"));
  EXPECT_THAT(csv, testing::ContainsRegex("16,2,1,[0-9]+,0\\.[0-9]+,77,"));
  EXPECT_THAT(read_for_test(path("sweep.svg")), HasSubstr("slots 3, shadow 0"));
}

TEST_F(Simulate, RunsAModelsLayers) {
  write_file_atomically(path("config.json"),
                        R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"],
  "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
  "num_key_value_heads": 2, "vocab_size": 64, "max_position_embeddings": 128,
  "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu"})");
  const ProgramResult result = run("--array 8 --seq 20 --json --model " + path("config.json"));
  ASSERT_EQ(result.code, 0) << result.err;
  const json report = json::parse(result.out);
  EXPECT_EQ(report["layers"].get<int>(), 3);
  EXPECT_EQ(report["model_cycles"].get<int64_t>(), 3 * report["cycles"].get<int64_t>());
  EXPECT_THAT(report["problem"].get<std::string>(),
              HasSubstr("4 heads (2 of keys), 20 queries, 20 keys, head dimension 8, causal"));
}

TEST_F(Simulate, RefusesWhatCannotBeBuilt) {
  const auto refused = [&](const std::string& flags, int code, const std::string& words) {
    const ProgramResult result = run(flags);
    EXPECT_EQ(result.code, code) << flags;
    EXPECT_THAT(result.err, HasSubstr(words)) << flags;
  };
  refused("--array 16 --bandwidth 0", 1, "memory.bytes_per_cycle: expected more than 0, got 0");
  refused("--array 16 --head-dim 17", 1, "head dimension: expected from 1 to 16");
  refused("--array 8x16 --causal", 1, "causal: expected a square array");
  refused("--array 300x300 --causal", 1, "array.rows");
  refused("--array 128x300 --causal", 1, "SRAM rows of at most 1024 bytes");
  refused("--array 512", 1, "array.rows: expected from 2 to 256");
  refused("--array x", 2, "--array: expected N or ROWSxCOLUMNS");
  refused("--sweep rowz=1", 2, "--sweep: expected NAME=VALUE");
  refused("--pieces 7", 1, "a power of two");
  refused("--program /nowhere.bin", 1, "/nowhere.bin");
  refused("--preset tiny --seq 6 --trace /nowhere/run", 1, "/nowhere/run.json: create");
}

}  // namespace
}  // namespace flashloom
