#include <fmt/format.h>

#include <memory>
#include <string>

#include "cli/commands.h"
#include "cli/loaded_model.h"
#include "cli/terminal.h"
#include "flashloom/train/export.h"

namespace flashloom::cli {
namespace {

struct Options {
  std::string model;
  std::string adapter;
  std::string output;
  std::string dtype = "f32";
};

int run(const Options& options) {
  LoadedModel loaded({.model = options.model, .adapter = options.adapter, .merge = true});
  save_hugging_face(options.output, loaded.model(), loaded.bundle().tokenizer,
                    parse_float_dtype(options.dtype));
  note(fmt::format("merged model in {}", options.output));
  return kSuccess;
}

}  // namespace

Command merge_command() {
  auto options = std::make_shared<Options>();
  return {.name = "merge",
          .summary = "Add an adapter to its model and write a Hugging Face directory",
          .flags = {{"--model", &options->model, "Hugging Face directory or GGUF file", true},
                    {"--adapter", &options->adapter,
                     "directory with adapter_config.json; without one, the model is converted"},
                    {"--output", &options->output, "directory to write", true},
                    {"--dtype",
                     &options->dtype,
                     "type of the stored weights",
                     false,
                     {"f32", "bf16", "f16"}}},
          .run = [options] { return run(*options); }};
}

}  // namespace flashloom::cli
