#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "flashloom/core/memory_plan.h"
#include "flashloom/core/philox.h"
#include "flashloom/core/tensor_view.h"
#include "flashloom/io/model_files.h"
#include "flashloom/io/safetensors.h"
#include "flashloom/models/llama/llama.h"
#include "flashloom/ops/linear_cross_entropy/linear_cross_entropy.h"

namespace flashloom {

inline const std::vector<std::string>& golden_kinds() {
  static const std::vector<std::string> kKinds = {"llama2", "llama3", "smollm2", "qwen2", "qwen3"};
  return kKinds;
}

inline std::string golden_folder(const std::string& kind) {
  return std::string(FLASHLOOM_SOURCE_DIR) + "/tests/golden/models/" + kind;
}

/// Documents that own their numbers.
struct TestBatch {
  std::vector<int32_t> tokens, positions, labels, cu_seqlens = {0};
  int64_t max_length = 0;

  void add(const std::vector<int32_t>& document, const std::vector<int32_t>& document_labels) {
    for (size_t i = 0; i < document.size(); ++i) {
      tokens.push_back(document[i]);
      labels.push_back(document_labels[i]);
      positions.push_back(static_cast<int32_t>(i));
    }
    cu_seqlens.push_back(static_cast<int32_t>(tokens.size()));
    max_length = std::max(max_length, static_cast<int64_t>(document.size()));
  }

  int64_t documents() const { return static_cast<int64_t>(cu_seqlens.size()) - 1; }

  /// A batch of documents [first, end) of this one.
  TestBatch part(int64_t first, int64_t end) const {
    TestBatch result;
    for (int64_t d = first; d < end; ++d) {
      const int32_t begin = cu_seqlens[static_cast<size_t>(d)];
      const int32_t stop = cu_seqlens[static_cast<size_t>(d) + 1];
      result.add({tokens.begin() + begin, tokens.begin() + stop},
                 {labels.begin() + begin, labels.begin() + stop});
    }
    return result;
  }

  int64_t loss_tokens() const {
    return std::count_if(labels.begin(), labels.end(),
                         [](int32_t label) { return label != kIgnoredLabel; });
  }

  float gradient_scale() const { return 1.0f / static_cast<float>(loss_tokens()); }

  LlamaBatch view() const {
    const auto vector = [](const std::vector<int32_t>& values) {
      return ConstTensorView(values.data(), {static_cast<int64_t>(values.size())});
    };
    return {vector(tokens), vector(positions), vector(labels), vector(cu_seqlens), max_length};
  }
};

/// The documents of a golden file.
inline TestBatch golden_batch(const SafetensorsFile& golden) {
  const auto read = [&](const char* name) {
    const ConstTensorView view = golden.view(name);
    return std::vector<int32_t>(view.as<int32_t>(), view.as<int32_t>() + view.size());
  };
  TestBatch batch;
  batch.tokens = read("tokens");
  batch.positions = read("positions");
  batch.labels = read("labels");
  batch.cu_seqlens = read("cu_seqlens");
  for (int64_t d = 0; d < batch.documents(); ++d) {
    const auto i = static_cast<size_t>(d);
    batch.max_length =
        std::max<int64_t>(batch.max_length, batch.cu_seqlens[i + 1] - batch.cu_seqlens[i]);
  }
  return batch;
}

inline SafetensorsFile open_golden(const std::string& kind) {
  return SafetensorsFile(golden_folder(kind) + "/golden.safetensors");
}

/// The adapters of a golden file.
inline LoraOptions golden_lora(const SafetensorsFile& golden) {
  LoraOptions options;
  options.rank = std::stoll(golden.metadata().at("lora_rank"));
  options.alpha = std::stod(golden.metadata().at("lora_alpha"));
  std::vector<std::string> names = {""};
  for (const char c : golden.metadata().at("lora_targets")) {
    if (c == ',') {
      names.emplace_back();
    } else {
      names.back() += c;
    }
  }
  options.targets = parse_lora_targets(names);
  return options;
}

/// A model with its memory, loaded from a folder.
struct TestModel {
  MemoryPlan plan;
  std::unique_ptr<LlamaModel> model;
  std::unique_ptr<Arena> arena;

  TestModel(const std::string& folder, LlamaModel::Options options) {
    const ModelFiles files = ModelFiles::open(folder);
    if (options.max_tokens == 0) {
      options.max_tokens = 64;
    }
    model = std::make_unique<LlamaModel>(files.config(), options, plan);
    arena = std::make_unique<Arena>(plan);
    model->bind(*arena);
    model->load(files);
  }

  LlamaModel* operator->() const { return model.get(); }

  const Parameter* find(const std::string& name) const {
    for (const Parameter& parameter : model->parameters()) {
      if (parameter.name == name) {
        return &parameter;
      }
    }
    return nullptr;
  }

  /// Copies of all gradients, side by side.
  std::vector<float> gradients() const {
    std::vector<float> all;
    for (const Parameter& parameter : model->parameters()) {
      if (parameter.trainable()) {
        const float* values = parameter.gradient.as<float>();
        all.insert(all.end(), values, values + parameter.gradient.size());
      }
    }
    return all;
  }

  /// B of the adapters from small numbers, so that they matter.
  void randomize_adapters(uint64_t seed) const {
    model->initialize_adapters(seed);
    RandomSequence random(seed, RandomStream::test);
    for (const Parameter& parameter : model->parameters()) {
      if (parameter.role == ParameterRole::adapter_b) {
        float* values = parameter.value.as<float>();
        for (int64_t i = 0; i < parameter.value.size(); ++i) {
          values[i] = random.uniform(-0.3f, 0.3f);
        }
      }
    }
  }
};

inline std::vector<float> to_vector(const ConstTensorView& view) {
  return {view.as<float>(), view.as<float>() + view.size()};
}

/// Largest difference, as a share of the largest expected value.
inline double relative_error(const std::vector<float>& actual, const std::vector<float>& expected) {
  double largest = 0;
  double difference = actual.size() == expected.size() ? 0 : INFINITY;
  for (size_t i = 0; i < std::min(actual.size(), expected.size()); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(expected[i])));
    const double d = std::abs(static_cast<double>(actual[i]) - static_cast<double>(expected[i]));
    difference = d <= difference ? difference : d;  // NaN stays
  }
  return difference / largest;
}

inline std::vector<float> logits_of(LlamaModel& model, const TestBatch& batch) {
  std::vector<float> logits(batch.tokens.size() *
                            static_cast<size_t>(model.config().vocabulary_size));
  model.logits(TensorView(logits.data(), {static_cast<int64_t>(batch.tokens.size()),
                                          model.config().vocabulary_size}),
               batch.view());
  return logits;
}

}  // namespace flashloom
