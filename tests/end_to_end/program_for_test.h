#pragma once

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "flashloom/core/philox.h"
#include "flashloom/io/atomic_file.h"
#include "flashloom/io/model_config.h"
#include "flashloom/io/safetensors_writer.h"
#include "flashloom/io/temporary_directory_for_test.h"
#include "flashloom/models/llama/llama_weights.h"

namespace flashloom {

struct ProgramResult {
  int code = 0;
  std::string out;
  std::string err;
};

/// Runs the built program; `arguments` is a shell line, `before` may be another program with its
/// arguments that runs ours.
inline ProgramResult run_program(const std::string& arguments, const std::string& folder,
                                 const std::string& before = "") {
  const std::string errors = folder + "/stderr.txt";
  const std::string line =
      before + " " + std::string(FLASHLOOM_PROGRAM) + " " + arguments + " 2>" + errors;
  FILE* pipe = popen(line.c_str(), "r");
  if (pipe == nullptr) {
    throw std::runtime_error("popen failed");
  }
  ProgramResult result;
  std::array<char, 4096> buffer;
  for (size_t count = 0; (count = std::fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) {
    result.out.append(buffer.data(), count);
  }
  const int status = pclose(pipe);
  result.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  std::ostringstream text;
  text << std::ifstream(errors).rdbuf();
  result.err = text.str();
  return result;
}

/// A decoder of two layers, as small as may be.
inline ModelConfig tiny_config() {
  return {.architecture = "llama",
          .vocabulary_size = 2048,  // rows beyond the tokenizer's pad the embedding
          .hidden_size = 48,
          .intermediate_size = 96,
          .layers = 2,
          .heads = 6,
          .kv_heads = 2,
          .head_dim = 8,
          .max_positions = 512,
          .rms_norm_epsilon = 1e-5,
          .rope_theta = 10000,
          .tied_embeddings = true};
}

/// A Hugging Face directory with a random SmolLM2-like model, a real tokenizer and SmolLM2's chat
/// template. Weights are large enough that training moves it.
inline void write_tiny_model(const std::string& directory,
                             const ModelConfig& config = tiny_config()) {
  const std::string golden = std::string(FLASHLOOM_SOURCE_DIR) + "/tests/golden/text/";
  std::filesystem::create_directories(directory);
  const std::string tokenizer_json = read_for_test(golden + "tokenizer_smollm2.json");
  write_file_atomically(directory + "/tokenizer.json", tokenizer_json);
  write_file_atomically(
      directory + "/tokenizer_config.json",
      R"({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"})");
  write_file_atomically(directory + "/chat_template.jinja",
                        read_for_test(golden + "templates/smollm2.jinja"));
  write_file_atomically(directory + "/config.json", to_hugging_face_json(config));

  MemoryPlan plan;
  LlamaWeights weights(config, /*trainable=*/false, DType::f32, plan);
  const Arena arena(plan);
  weights.bind(arena);
  std::vector<Parameter> parameters;
  weights.append_parameters(parameters);
  std::vector<SafetensorsEntry> entries;
  RandomSequence random(5, RandomStream::test);
  for (const Parameter& parameter : parameters) {
    const TensorView& value = parameter.value;
    entries.push_back(
        {parameter.name, DType::f32, {value.shape.begin(), value.shape.begin() + value.rank}});
    for (int64_t i = 0; i < value.size(); ++i) {
      value.as<float>()[i] = value.rank == 1 ? 1.0f : 0.15f * random.normal();
    }
  }
  SafetensorsModelWriter writer(directory, entries);
  for (const Parameter& parameter : parameters) {
    writer.write(parameter.name, parameter.value);
  }
  writer.finish();
}

/// JSONL of `count` questions; in `answer` {} stands for the square of a question's number.
inline std::string prompt_rows(int count, const std::string& answer = "It is {}.") {
  std::string rows;
  for (int i = 0; i < count; ++i) {
    rows += fmt::format(R"({{"prompt": "What is number {}?", "completion": "{}"}})", i,
                        fmt::format(fmt::runtime(answer), i * i));
    rows += '\n';
  }
  return rows;
}

/// The same as conversations.
inline std::string chat_rows(int count, const std::string& answer = "It is {}.") {
  std::string rows;
  for (int i = 0; i < count; ++i) {
    rows += fmt::format(R"({{"messages": [{{"role": "user", "content": "What is number {}?"}}, )"
                        R"({{"role": "assistant", "content": "{}"}}]}})",
                        i, fmt::format(fmt::runtime(answer), i * i));
    rows += '\n';
  }
  return rows;
}

/// Tests that share a folder with a tiny model in it. A suite calls make_folder in its
/// SetUpTestSuite.
class ProgramTest : public testing::Test {
 protected:
  static void make_folder(const ModelConfig& config = tiny_config()) {
    folder_ = std::make_unique<TemporaryDirectory>();
    write_tiny_model(path("model"), config);
  }

  static void TearDownTestSuite() { folder_.reset(); }

  static std::string path(const std::string& name) { return *folder_ / name; }

  static ProgramResult run(const std::string& arguments, const std::string& before = "") {
    return run_program(arguments, folder_->path(), before);
  }

  /// Bytes of the adapter of a run, by its --output.
  static std::string adapter(const std::string& output) {
    return read_for_test(path(output) + "/adapter_model.safetensors");
  }

  inline static std::unique_ptr<TemporaryDirectory> folder_;
};

}  // namespace flashloom
