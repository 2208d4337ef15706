#include <fmt/format.h>
#include <fmt/ranges.h>

#include <memory>
#include <string>

#include "cli/commands.h"
#include "flashloom/core/progress.h"
#include "flashloom/io/model_files.h"
#include "flashloom/json/json.h"

namespace flashloom::cli {
namespace {

struct Options {
  std::string model;
  bool tensors = false;
  bool json = false;
};

Json facts(const ModelFiles& files) {
  const ModelConfig& config = files.config();
  int64_t bytes = 0;
  for (const ModelTensor& tensor : files.tensors()) {
    bytes += tensor.stored_bytes;
  }
  Json json = {
      {"path", files.path()},
      {"format", files.format() == ModelFiles::Format::gguf ? "GGUF" : "Hugging Face"},
      {"architecture", config.architecture},
      {"parameters", parameter_count(config)},
      {"stored_bytes", bytes},
      {"layers", config.layers},
      {"hidden_size", config.hidden_size},
      {"intermediate_size", config.intermediate_size},
      {"heads", config.heads},
      {"kv_heads", config.kv_heads},
      {"head_dim", config.head_dim},
      {"vocabulary_size", config.vocabulary_size},
      {"max_positions", config.max_positions},
      {"rope_theta", config.rope_theta},
      {"rope_scaling", rope_scaling_name(config.rope_scaling)},
      {"rms_norm_epsilon", config.rms_norm_epsilon},
      {"attention_bias", config.attention_bias},
      {"qk_norm", config.qk_norm},
      {"tied_embeddings", config.tied_embeddings},
      {"eos_token_ids", config.eos_token_ids},
  };
  return json;
}

int run(const Options& options) {
  const ModelFiles files = ModelFiles::open(options.model);
  Json json = facts(files);
  if (options.json) {
    if (options.tensors) {
      for (const ModelTensor& tensor : files.tensors()) {
        json["tensors"].push_back(
            {{"name", tensor.name}, {"shape", tensor.shape}, {"type", tensor.stored_type}});
      }
    }
    fmt::print("{}\n", json.dump());
    return kSuccess;
  }
  for (const auto& [key, value] : json.members()) {
    const std::string text = value.is_string() ? value.string() : value.dump();
    fmt::print("{:<18} {}\n", key, text);
  }
  for (const auto& [key, value] : files.metadata()) {
    fmt::print("  {} = {}\n", key, value);
  }
  if (options.tensors) {
    for (const ModelTensor& tensor : files.tensors()) {
      fmt::print("  {:<60} {:<6} ({}) {}\n", tensor.name, tensor.stored_type,
                 fmt::join(tensor.shape, ", "), format_bytes(tensor.stored_bytes));
    }
  }
  return kSuccess;
}

}  // namespace

Command inspect_command() {
  auto options = std::make_shared<Options>();
  return {.name = "inspect",
          .summary = "Show what a model file holds",
          .flags = {{"model", &options->model, "Hugging Face directory or GGUF file", true},
                    {"--tensors", &options->tensors, "list every tensor"},
                    {"--json", &options->json, "one JSON object on standard output"}},
          .run = [options] { return run(*options); }};
}

}  // namespace flashloom::cli
