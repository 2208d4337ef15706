#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdio>
#include <iostream>
#include <memory>
#include <string>

#include "cli/commands.h"
#include "flashloom/train/model_bundle.h"

namespace flashloom::cli {
namespace {

struct Options {
  std::string model;
  bool special = false;
};

int run(const Options& options) {
  const Tokenizer tokenizer = open_tokenizer(options.model);
  std::string line;
  while (std::getline(std::cin, line)) {
    fmt::print("{}\n",
               fmt::join(tokenizer.encode(line, {.add_special_tokens = options.special}), " "));
    std::fflush(stdout);
  }
  return kSuccess;
}

}  // namespace

Command tokenize_command() {
  auto options = std::make_shared<Options>();
  return {.name = "tokenize",
          .summary = "Turn each line of standard input into a line of token ids",
          .flags = {{"--model", &options->model, "Hugging Face directory or GGUF file", true},
                    {"--special", &options->special,
                     "add the special tokens that the tokenizer puts around a text"}},
          .run = [options] { return run(*options); }};
}

}  // namespace flashloom::cli
