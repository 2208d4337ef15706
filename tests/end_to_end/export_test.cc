#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "flashloom/io/model_files.h"
#include "flashloom/io/temporary_directory_for_test.h"
#include "tests/end_to_end/program_for_test.h"

namespace flashloom {
namespace {

using testing::HasSubstr;

// Rows of 64 and 256: Q4_K where it fits, Q5_0 elsewhere.
ModelConfig config() {
  ModelConfig c = tiny_config();
  c.hidden_size = 64;
  c.heads = 8;
  c.intermediate_size = 256;
  return c;
}

class Export : public ProgramTest {
 protected:
  static void SetUpTestSuite() {
    make_folder(config());
    write_file_atomically(path("rows.jsonl"), prompt_rows(10, " It is the one."));
  }

  static void must(const std::string& arguments) {
    const ProgramResult result = run(arguments);
    ASSERT_EQ(result.code, 0) << result.err;
  }

  static double loss(const std::string& model, const std::string& more = "") {
    const ProgramResult result =
        run("evaluate --json --data " + path("rows.jsonl") + " --model " + path(model) + more);
    EXPECT_EQ(result.code, 0) << result.err;
    return result.code == 0 ? nlohmann::json::parse(result.out).at("loss").get<double>() : 0;
  }
};

TEST_F(Export, WritesGgufThatMeansTheSame) {
  const double before = loss("model");
  must("export --model " + path("model") + " --output " + path("f32.gguf"));
  EXPECT_EQ(loss("f32.gguf"), before);
  must("export --model " + path("model") + " --type q8_0 --output " + path("q8.gguf"));
  EXPECT_NEAR(loss("q8.gguf"), before, 0.05);
  EXPECT_NE(loss("q8.gguf"), before);
  must("export --model " + path("model") + " --type q4_k --output " + path("q4.gguf"));
  EXPECT_NEAR(loss("q4.gguf"), before, 0.2);
  const ModelFiles q4 = ModelFiles::open(path("q4.gguf"));
  EXPECT_EQ(q4.find("model.layers.1.mlp.down_proj.weight")->stored_type, "Q4_K");
  EXPECT_EQ(q4.find("model.layers.1.mlp.up_proj.weight")->stored_type, "Q5_0");
  EXPECT_EQ(q4.find("model.embed_tokens.weight")->stored_type, "Q8_0");
  EXPECT_EQ(q4.find("model.norm.weight")->stored_type, "F32");
  // From a GGUF file: what it holds, in f32.
  must("export --model " + path("q4.gguf") + " --output " + path("wide.gguf"));
  EXPECT_EQ(loss("wide.gguf"), loss("q4.gguf"));
  const auto ids = [&](const std::string& model) {
    write_file_atomically(path("lines.txt"), "<|im_start|>user\nWhat is 1234?<|im_end|>\n");
    return run("tokenize --model " + path(model) + " < " + path("lines.txt")).out;
  };
  EXPECT_EQ(ids("q4.gguf"), ids("model"));
  EXPECT_FALSE(ids("model").empty());
}

TEST_F(Export, AddsAnAdapter) {
  must("finetune --model " + path("model") + " --data " + path("rows.jsonl") + " --output " +
       path("adapter") + " --steps 8 --lr 1e-2 --batch-tokens 128 --guards off");
  const double adapted = loss("model", " --adapter " + path("adapter"));
  EXPECT_GT(std::fabs(adapted - loss("model")), 0.1);
  must("export --model " + path("model") + " --adapter " + path("adapter") + " --output " +
       path("merged.gguf"));
  EXPECT_NEAR(loss("merged.gguf"), adapted, 1e-4);
}

TEST_F(Export, WritesShards) {
  must("export --model " + path("model") + " --output " + path("f32.gguf"));
  must("export --model " + path("f32.gguf") + " --max-shard-size 200KB --output " +
       path("sharded"));
  EXPECT_TRUE(std::filesystem::exists(path("sharded/model.safetensors.index.json")));
  EXPECT_TRUE(std::filesystem::exists(path("sharded/model-00002-of-00004.safetensors")));
  EXPECT_EQ(loss("sharded"), loss("model"));
}

TEST_F(Export, SaysWhatIsWrong) {
  const auto refused = [&](const std::string& arguments) {
    const ProgramResult result = run("export --model " + path("model") + " " + arguments);
    EXPECT_EQ(result.code, 2) << arguments;
    return result.err;
  };
  EXPECT_THAT(refused("--output " + path("x.gguf") + " --type q6_k"), HasSubstr("--type"));
  EXPECT_THAT(refused("--output " + path("x") + " --type q4_k"),
              HasSubstr("--type: a Hugging Face directory holds f32, bf16 or f16, not q4_k"));
  EXPECT_THAT(refused("--output " + path("x.gguf") + " --max-shard-size 2GB"),
              HasSubstr("--max-shard-size"));
  EXPECT_THAT(refused("--output " + path("x") + " --max-shard-size many"),
              HasSubstr("--max-shard-size"));
  EXPECT_THAT(refused("--output " + path("model")), HasSubstr("another place than the model"));
  EXPECT_THAT(refused("--format gguf --output " + folder_->path()), HasSubstr("is a directory"));
  EXPECT_THAT(refused("--output " + path("rows.jsonl")), HasSubstr("is a file"));
  const ProgramResult missing =
      run("export --model " + path("nowhere") + " --output " + path("x.gguf"));
  EXPECT_EQ(missing.code, 1);
  EXPECT_THAT(missing.err, HasSubstr("no such file"));
  EXPECT_FALSE(std::filesystem::exists(path("x.gguf")));
}

}  // namespace
}  // namespace flashloom
