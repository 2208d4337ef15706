#include "flashloom/train/export.h"

#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>

#include "cli/commands.h"
#include "cli/loaded_model.h"
#include "cli/terminal.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/progress.h"
#include "flashloom/io/gguf_export.h"

namespace flashloom::cli {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::string model;
  std::string adapter;
  std::string output;
  std::optional<std::string> format;
  std::optional<std::string> type;
  std::optional<std::string> max_shard_size;
  std::string name;
  int64_t threads = 0;
};

bool writes_gguf(const Options& options) {
  return options.format ? *options.format == "gguf" : options.output.ends_with(".gguf");
}

// What the model itself has, or f32 where that has fewer bits than a float.
std::string type_of(const Options& options, const ModelConfig& config) {
  return options.type.value_or(std::string(dtype_name(config.stored_dtype)));
}

int64_t shard_bytes(const Options& options) {
  if (!options.max_shard_size) {
    return SafetensorsModelWriter::kDefaultShardBytes;
  }
  try {
    return parse_bytes(*options.max_shard_size);
  } catch (const InvalidArgument& error) {
    throw UsageError(fmt::format("--max-shard-size: {}", error.what()));
  }
}

// Before the model is read.
void validate(const Options& options) {
  if (options.threads < 0) {
    throw UsageError(fmt::format("--threads: expected 0 or more, got {}", options.threads));
  }
  std::error_code ignored;
  if (fs::equivalent(options.model, options.output, ignored)) {
    throw UsageError(
        fmt::format("--output: expected another place than the model itself, {}", options.model));
  }
  if (writes_gguf(options)) {
    if (options.max_shard_size) {
      throw UsageError("--max-shard-size: a GGUF file is not cut; it is of --format hugging-face");
    }
    if (fs::is_directory(options.output, ignored)) {
      throw UsageError(
          fmt::format("--output: expected the name of a file, {} is a directory", options.output));
    }
    return;
  }
  shard_bytes(options);
  if (options.type && *options.type != "f32" && *options.type != "bf16" && *options.type != "f16") {
    throw UsageError(
        fmt::format("--type: a Hugging Face directory holds f32, bf16 or f16, not {}; "
                    "--format gguf does",
                    *options.type));
  }
  if (fs::exists(options.output, ignored) && !fs::is_directory(options.output, ignored)) {
    throw UsageError(fmt::format("--output: expected a directory, {} is a file", options.output));
  }
}

std::string model_name(const Options& options) {
  if (!options.name.empty()) {
    return options.name;
  }
  const fs::path path = fs::path(options.model).lexically_normal();
  return path.has_filename() ? path.stem().string() : path.parent_path().filename().string();
}

int run(const Options& options) {
  validate(options);
  set_thread_count(static_cast<int>(options.threads));
  LoadedModel loaded({.model = options.model, .adapter = options.adapter, .merge = true});
  const std::string type = type_of(options, loaded.model().config());
  const Tokenizer& tokenizer = loaded.bundle().tokenizer;
  if (!writes_gguf(options)) {
    save_hugging_face(options.output, loaded.model(), tokenizer, parse_float_dtype(type),
                      shard_bytes(options));
    note(fmt::format("{} model in {}", type, options.output));
    return kSuccess;
  }
  save_gguf(options.output, loaded.model(), tokenizer, parse_gguf_type(type), model_name(options));
  note(fmt::format("{} model in {}, {}", type, options.output,
                   format_bytes(static_cast<int64_t>(fs::file_size(options.output)))));
  return kSuccess;
}

}  // namespace

Command export_command() {
  auto options = std::make_shared<Options>();
  return {.name = "export",
          .summary = "Write a model, with its adapter added, as GGUF or for transformers",
          .flags = {{"--model", &options->model, "Hugging Face directory or GGUF file", true},
                    {"--adapter", &options->adapter,
                     "directory with adapter_config.json, added to the weights"},
                    {"--output", &options->output, "file or directory to write", true},
                    {"--format",
                     &options->format,
                     "one file that llama.cpp loads, or a directory that transformers loads; "
                     "default: gguf for an output that ends so",
                     false,
                     {"gguf", "hugging-face"}},
                    {"--type",
                     &options->type,
                     "of matrices, quantised ones in GGUF alone; default: as the model has them, "
                     "f32 if it is quantised",
                     false,
                     {"f32", "bf16", "f16", "q8_0", "q4_0", "q4_k"}},
                    {"--max-shard-size", &options->max_shard_size,
                     "of a file of weights, as 2GB, in a directory; default 5GB"},
                    {"--name", &options->name,
                     "that a GGUF file gives the model; default: the name of MODEL"},
                    {"--threads", &options->threads, "0: all cores; results do not depend on it"}},
          .run = [options] { return run(*options); },
          .footer =
              "Example: flashloom export --model MODEL --adapter run --type q4_k "
              "--output model.gguf"};
}

}  // namespace flashloom::cli
