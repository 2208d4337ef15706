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

TEST_F(Simulate, AConfigMaySayAnArrayOfOneNumber) {
  write_file_atomically(path("square.toml"), "array = 8\nseq = 16\ncycles-only = true\n");
  const ProgramResult number = run("--config " + path("square.toml"));
  ASSERT_EQ(number.code, 0) << number.err;
  EXPECT_THAT(number.out, HasSubstr("rows = 8\ncolumns = 8\n"));
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
  EXPECT_THAT(csv, testing::StartsWith("array,slots,shadow,cycles,utilisation,"));
  EXPECT_THAT(csv, testing::ContainsRegex("16,3,0,[0-9]+,0\\.[0-9]+,0\\.[0-9]+,91,"));
  EXPECT_THAT(csv, testing::ContainsRegex("16,2,1,[0-9]+,0\\.[0-9]+,0\\.[0-9]+,77,"));
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

// Facts of the models' own config.json, without what attention does not ask.
TEST_F(Simulate, ReadsModelsOfManyFamilies) {
  const auto problem = [&](const std::string& config, const std::string& flags) {
    write_file_atomically(path("config.json"), config);
    const ProgramResult result =
        run("--cycles-only --json --model " + path("config.json") + " " + flags);
    return result.code == 0 ? json::parse(result.out)["problem"].get<std::string>() : result.err;
  };
  const std::string smollm2 = R"({"model_type": "llama", "hidden_size": 576,
      "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3})";
  EXPECT_EQ(problem(smollm2, "--array 64 --seq 100"),
            "9 heads (3 of keys), 100 queries, 100 keys, head dimension 64, causal");
  EXPECT_EQ(problem(smollm2, "--array 64 --seq 1 --keys 1000"),
            "9 heads (3 of keys), 1 queries, 1000 keys, head dimension 64, causal");
  EXPECT_THAT(problem(smollm2, "--array 32"), HasSubstr("head dimension: expected from 1 to 32"));
  EXPECT_THAT(problem(smollm2, "--array 64 --heads 4"),
              HasSubstr("--model: expected none of --heads"));
  EXPECT_EQ(problem(R"({"model_type": "gpt2", "n_embd": 48, "n_layer": 2, "n_head": 3})",
                    "--array 16 --seq 20"),
            "3 heads, 20 queries, 20 keys, head dimension 16, causal");
  EXPECT_EQ(problem(R"({"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2,
                        "num_attention_heads": 2})",
                    "--array 16 --seq 20"),
            "2 heads, 20 queries, 20 keys, head dimension 16");
  EXPECT_EQ(problem(R"({"model_type": "deepseek_v3", "num_hidden_layers": 2, "kv_lora_rank": 8,
                        "num_attention_heads": 2, "qk_nope_head_dim": 12, "qk_rope_head_dim": 4,
                        "v_head_dim": 24, "hidden_size": 99})",
                    "--array 16 --seq 20"),
            "2 heads, 20 queries, 20 keys, head dimension 16, value dimension 24, causal");
  EXPECT_EQ(problem(R"({"model_type": "gemma3", "text_config": {"num_hidden_layers": 6,
                        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
                        "sliding_window": 512, "sliding_window_pattern": 6}})",
                    "--array 16 --seq 512"),
            "2 heads (1 of keys), 512 queries, 512 keys, head dimension 8, causal");
  // ModernBERT: 128 keys around a query in two layers of three.
  const std::string modern = R"({"model_type": "modernbert", "hidden_size": 32,
      "num_hidden_layers": 22, "num_attention_heads": 2, "global_attn_every_n_layers": 3,
      "local_attention": 128})";
  EXPECT_EQ(problem(modern, "--array 16 --seq 65"),
            "2 heads, 65 queries, 65 keys, head dimension 16");
  EXPECT_THAT(problem(modern, "--array 16 --seq 66"),
              HasSubstr("config.json: sliding_window: expected layers that see every key, got "
                        "windows in 14 of 22 layers, which hide keys beyond 65"));
  EXPECT_THAT(problem(R"({"model_type": "mistral", "hidden_size": 32, "num_hidden_layers": 2,
                          "num_attention_heads": 2, "sliding_window": 16})",
                      "--array 16 --seq 17"),
              HasSubstr("windows in 2 of 2 layers"));
  EXPECT_THAT(problem(R"({"model_type": "qwen2", "layer_types": ["linear_attention"],
                          "num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2})",
                      "--array 16 --seq 17"),
              HasSubstr("layer_types: expected layers of attention, got linear_attention"));
  EXPECT_THAT(problem(R"({"num_hidden_layers": 2, "num_attention_heads": 3, "hidden_size": 32})",
                      "--array 16"),
              HasSubstr("hidden_size: expected a multiple of 3 heads, got 32"));
  EXPECT_THAT(problem(R"({"num_hidden_layers": "2"})", ""),
              HasSubstr("num_hidden_layers: expected from 1 to 1048576, got \"2\""));
  EXPECT_THAT(problem("[1]", ""), HasSubstr("expected a JSON object"));
}

TEST_F(Simulate, RefusesWhatCannotBeBuilt) {
  const auto refused = [&](const std::string& flags, int code, const std::string& words) {
    const ProgramResult result = run(flags);
    EXPECT_EQ(result.code, code) << flags;
    EXPECT_THAT(result.err, HasSubstr(words)) << flags;
  };
  refused("--array 16 --bandwidth 0", 1, "bandwidth: expected more than 0, got 0");
  refused("--array 16 --head-dim 17", 1, "head dimension: expected from 1 to 16");
  refused("--array 8x16 --causal", 1, "causal: expected a square array");
  refused("--array 300x300 --causal", 1, "systolic: rows");
  refused("--array 128x300 --causal", 1, "SRAM rows of at most 1024 bytes");
  refused("--array 512", 1, "rows: expected from 2 to 256, got 512");
  refused("--array x", 2, "--array: expected N or ROWSxCOLUMNS");
  refused("--sweep rowz=1", 2, "--sweep: expected NAME=VALUE");
  refused("--sweep seq=16 --json", 2, "--sweep: expected none of --trace");
  refused("--sweep slots=2:4 --seq 16", 1, "slots: expected from 1 to 3, got 4");
  refused("--array 16 --pe-depth 0", 1, "pe-depth: expected from 1 to 16, got 0");
  refused("--array 16 --seq 16 --value-dim 500", 1, "value dimension: expected from 1 to 416");
  write_file_atomically(path("list.toml"), "array = [8, 8]\n");
  refused("--config " + path("list.toml"), 2, "list.toml: line 1: array: expected a string");
  refused("--config /nowhere.toml", 2, "/nowhere.toml: File could not be opened");
  refused("--pieces 7", 1, "a power of two");
  refused("--program /nowhere.bin", 1, "/nowhere.bin");
  refused("--preset tiny --seq 6 --trace /nowhere/run", 1, "/nowhere/run.json: create");
}

}  // namespace
}  // namespace flashloom
