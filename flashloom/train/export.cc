#include "flashloom/train/export.h"

#include <fmt/format.h>

#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/io/atomic_file.h"
#include "flashloom/io/gguf_export.h"
#include "flashloom/train/gguf_vocabulary.h"

namespace flashloom {
namespace {

bool is_weight(const Parameter& parameter) {
  return !is_adapter(parameter.role);
}

}  // namespace

DType parse_float_dtype(std::string_view name) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    if (dtype_name(dtype) == name) {
      return dtype;
    }
  }
  throw InvalidArgument("parse_float_dtype", "name", "f32, bf16 or f16", name);
}

void save_tokenizer(const std::string& directory, const Tokenizer& tokenizer) {
  for (const auto& [name, content] : tokenizer.files()) {
    write_file_atomically(fmt::format("{}/{}", directory, name), content);
  }
}

void save_hugging_face(const std::string& directory, const LlamaModel& model,
                       const Tokenizer& tokenizer, DType dtype, int64_t max_shard_bytes) {
  make_directory(directory);
  write_file_atomically(directory + "/config.json", to_hugging_face_json(model.config()));
  write_file_atomically(directory + "/generation_config.json",
                        to_generation_config_json(model.config()));
  save_tokenizer(directory, tokenizer);
  std::vector<SafetensorsEntry> entries;
  for (const Parameter& parameter : model.parameters()) {
    if (is_weight(parameter)) {
      const TensorView& value = parameter.value;
      entries.push_back(
          {parameter.name, dtype, {value.shape.begin(), value.shape.begin() + value.rank}});
    }
  }
  SafetensorsModelWriter writer(directory, std::move(entries), max_shard_bytes);
  for (const Parameter& parameter : model.parameters()) {
    if (is_weight(parameter)) {
      writer.write(parameter.name, parameter.value);
    }
  }
  writer.finish();
}

void save_gguf(const std::string& path, const LlamaModel& model, const Tokenizer& tokenizer,
               GgmlType type, const std::string& model_name) {
  std::vector<GgufModelWriter::Tensor> tensors;
  for (const Parameter& parameter : model.parameters()) {
    if (is_weight(parameter)) {
      const TensorView& value = parameter.value;
      tensors.push_back({parameter.name, {value.shape.begin(), value.shape.begin() + value.rank}});
    }
  }
  GgufModelWriter writer(path, model.config(), stored_vocabulary(tokenizer), tensors,
                         {.type = type, .model_name = model_name});
  for (const Parameter& parameter : model.parameters()) {
    if (is_weight(parameter)) {
      writer.write(parameter.name, parameter.value);
    }
  }
  writer.finish();
}

}  // namespace flashloom
