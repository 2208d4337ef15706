#include "cli/loaded_model.h"

#include <algorithm>

#include "flashloom/train/adapter_files.h"

namespace flashloom::cli {

LoadedModel::LoadedModel(const Options& options) : bundle_(open_model(options.model)) {
  LlamaModel::Options model_options = {.max_tokens = std::max<int64_t>(1, options.max_tokens)};
  if (!options.adapter.empty()) {
    model_options.lora = read_adapter_options(options.adapter);
  }
  model_ = std::make_unique<LlamaModel>(bundle_.files.config(), model_options, plan_);
  if (options.context > 0) {
    generator_ = std::make_unique<LlamaGenerator>(
        *model_, LlamaGenerator::Options{.capacity = options.context}, plan_);
  }
  plan_.require(available_memory_bytes());
  arena_ = std::make_unique<Arena>(plan_);
  model_->bind(*arena_);
  model_->load(bundle_.files);
  if (!options.adapter.empty()) {
    load_adapter(options.adapter, *model_);
    if (options.merge) {
      model_->merge_adapters();
    }
  }
  if (generator_) {
    generator_->bind(*arena_);
  }
}

}  // namespace flashloom::cli
