#include "flashloom/train/export.h"

#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/io/atomic_file.h"
#include "flashloom/io/safetensors_writer.h"

namespace flashloom {

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
    write_file_atomically(directory + "/" + name, content);
  }
}

void save_hugging_face(const std::string& directory, const LlamaModel& model,
                       const Tokenizer& tokenizer, DType dtype) {
  make_directory(directory);
  write_file_atomically(directory + "/config.json", to_hugging_face_json(model.config()));
  write_file_atomically(directory + "/generation_config.json",
                        to_generation_config_json(model.config()));
  save_tokenizer(directory, tokenizer);
  const auto is_weight = [](const Parameter& parameter) { return !is_adapter(parameter.role); };
  std::vector<SafetensorsEntry> entries;
  for (const Parameter& parameter : model.parameters()) {
    if (is_weight(parameter)) {
      const TensorView& value = parameter.value;
      entries.push_back(
          {parameter.name, dtype, {value.shape.begin(), value.shape.begin() + value.rank}});
    }
  }
  SafetensorsModelWriter writer(directory, std::move(entries));
  for (const Parameter& parameter : model.parameters()) {
    if (is_weight(parameter)) {
      writer.write(parameter.name, parameter.value);
    }
  }
  writer.finish();
}

}  // namespace flashloom
