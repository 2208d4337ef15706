#pragma once

#include <memory>
#include <optional>
#include <string>

#include "flashloom/models/llama/llama.h"
#include "flashloom/models/llama/llama_generator.h"
#include "flashloom/train/model_bundle.h"

namespace flashloom::cli {

/// A model in memory for inference, with its adapter if one is named.
class LoadedModel {
 public:
  struct Options {
    std::string model;
    std::string adapter;     // directory; may be empty
    int64_t max_tokens = 0;  // of a batch to evaluate; 0: generation only
    int64_t context = 0;     // longest context to generate in; 0: evaluation only
    bool merge = false;      // adds the adapter to the weights
  };

  explicit LoadedModel(const Options& options);

  const ModelBundle& bundle() const { return bundle_; }

  LlamaModel& model() { return *model_; }

  LlamaGenerator& generator() { return *generator_; }

 private:
  ModelBundle bundle_;
  MemoryPlan plan_;
  std::unique_ptr<LlamaModel> model_;
  std::unique_ptr<LlamaGenerator> generator_;
  std::unique_ptr<Arena> arena_;
};

}  // namespace flashloom::cli
