#include "flashloom/train/adapter_files.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>
#include <set>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/io/atomic_file.h"
#include "flashloom/io/element_conversion.h"
#include "flashloom/io/mapped_file.h"
#include "flashloom/io/safetensors.h"
#include "flashloom/io/safetensors_writer.h"
#include "flashloom/json/json.h"

namespace flashloom {
namespace {

constexpr const char* kWeights = "/adapter_model.safetensors";
constexpr const char* kConfig = "/adapter_config.json";
constexpr int64_t kMaxAdapterRank = 65536;  // beyond any matrix; keeps sizes from bad files small

std::vector<int64_t> shape_of(const ConstTensorView& view) {
  return {view.shape.begin(), view.shape.begin() + view.rank};
}

// "self_attn.q_proj" -> "q_proj", the name peft matches.
std::string short_name(LlamaLinear linear) {
  const std::string_view name = llama_linear_name(linear);
  return std::string(name.substr(name.rfind('.') + 1));
}

// Fields that change what an adapter computes; each must be absent, null, or as given here.
void refuse_variants(const Json& config, const std::string& file) {
  const Json plain = {
      {"peft_type", "LORA"},
      {"fan_in_fan_out", false},
      {"lora_bias", false},
      {"bias", "none"},
      {"rank_pattern", Json::object()},
      {"alpha_pattern", Json::object()},
      {"modules_to_save", nullptr},
      {"layer_replication", nullptr},
      {"target_parameters", nullptr},
      {"trainable_token_indices", nullptr},
  };
  for (const auto& [key, value] : plain.members()) {
    const Json* found = config.find(key);
    const bool absent =
        found == nullptr || found->is_null() || (found->is_array() && found->size() == 0);
    if (!absent && *found != value) {
      throw IoError(file, key,
                    fmt::format("only {} is supported, found {}", value.dump(), found->dump()));
    }
  }
}

// peft's `layers_to_transform`: a layer or a list of them; absent or null: all.
std::vector<int64_t> read_layers(const Json& config, const std::string& file) {
  const Json* found = config.find("layers_to_transform");
  if (found == nullptr || found->is_null()) {
    return {};
  }
  std::set<int64_t> layers;
  const Json list = found->is_array() ? *found : Json::array({*found});
  for (const Json& layer : list.elements()) {
    if (!layer.is_unsigned()) {
      throw IoError(file, "layers_to_transform", "expected a list of layer numbers");
    }
    layers.insert(layer.integer());
  }
  return {layers.begin(), layers.end()};
}

// Absent and null are false.
bool read_flag(const Json& config, const char* key, const std::string& file) {
  const Json* found = config.find(key);
  if (found == nullptr || found->is_null()) {
    return false;
  }
  if (!found->is_boolean()) {
    throw IoError(file, key, "expected true or false");
  }
  return found->boolean();
}

}  // namespace

void save_adapter(const std::string& directory, const LlamaModel& model,
                  const std::string& base_model) {
  const LoraOptions& options = model.adapters().options();
  std::vector<SafetensorsEntry> entries;
  for (const Parameter& parameter : model.parameters()) {
    if (is_adapter(parameter.role)) {
      entries.push_back({parameter.name, DType::f32, shape_of(parameter.value)});
    }
  }
  SafetensorsWriter writer(directory + kWeights, entries);
  for (const Parameter& parameter : model.parameters()) {
    if (is_adapter(parameter.role)) {
      writer.write(parameter.name, parameter.value);
    }
  }
  writer.finish();

  Json config = {
      {"peft_type", "LORA"},
      {"task_type", "CAUSAL_LM"},
      {"base_model_name_or_path", base_model},
      {"inference_mode", true},
      {"r", options.rank},
      {"lora_alpha", options.alpha},
      {"lora_dropout", 0.0},
      {"bias", "none"},
      {"fan_in_fan_out", false},
      {"use_rslora", options.rank_stabilized},
      {"use_dora", options.dora},
  };
  if (options.alpha == std::floor(options.alpha)) {
    config["lora_alpha"] = static_cast<int64_t>(options.alpha);
  }
  config["target_modules"] = Json::array();
  for (size_t i = 0; i < kLlamaLinears; ++i) {
    if (options.targets[i]) {
      config["target_modules"].push_back(short_name(static_cast<LlamaLinear>(i)));
    }
  }
  if (!options.layers.empty()) {
    config["layers_to_transform"] = options.layers;
  }
  write_file_atomically(directory + kConfig, config.dump(2) + "\n");
}

LoraOptions read_adapter_options(const std::string& directory) {
  const std::string file = directory + kConfig;
  const Json config = parse_strict_json(MappedFile(file).text(), file);
  if (!config.is_object()) {
    throw IoError(file, "", "expected an object");
  }
  refuse_variants(config, file);
  LoraOptions options;
  const Json* rank = config.find("r");
  if (rank == nullptr || !rank->is_integer() || rank->number() < 1 ||
      rank->number() > kMaxAdapterRank) {
    throw IoError(file, "r", "expected a whole number above 0");
  }
  options.rank = rank->integer();
  const Json* alpha = config.find("lora_alpha");
  if (alpha == nullptr || !alpha->is_number()) {
    throw IoError(file, "lora_alpha", "expected a number");
  }
  options.alpha = alpha->number();
  options.rank_stabilized = read_flag(config, "use_rslora", file);
  options.dora = read_flag(config, "use_dora", file);
  options.layers = read_layers(config, file);
  const Json* targets = config.find("target_modules");
  if (targets == nullptr || !(targets->is_array() || *targets == "all-linear")) {
    throw IoError(file, "target_modules", "expected a list of names");
  }
  if (targets->is_array()) {
    std::vector<std::string> names;
    for (const Json& name : targets->elements()) {
      if (!name.is_string()) {
        throw IoError(file, "target_modules", "expected a list of names");
      }
      names.push_back(name.string());
    }
    try {
      options.targets = parse_lora_targets(names);
    } catch (const InvalidArgument& error) {
      throw IoError(file, "target_modules", error.what());
    }
  }
  return options;
}

void load_adapter(const std::string& directory, const LlamaModel& model) {
  const SafetensorsFile file(directory + kWeights);
  std::set<std::string, std::less<>> wanted;
  for (const Parameter& parameter : model.parameters()) {
    if (!is_adapter(parameter.role)) {
      continue;
    }
    const SafetensorsTensor* tensor = file.find(parameter.name);
    if (tensor == nullptr) {
      throw IoError(file.path(), parameter.name, "is missing");
    }
    const auto dtype = safetensors_dtype(tensor->dtype);
    if (tensor->shape != shape_of(parameter.value) || !dtype || !is_convertible(*dtype)) {
      throw IoError(file.path(), parameter.name,
                    fmt::format("expected {}, found ({}) {}", describe(parameter.value),
                                fmt::join(tensor->shape, ", "), tensor->dtype));
    }
    decode_to_f32(*dtype, tensor->bytes.data(), parameter.value.size(),
                  parameter.value.as<float>());
    wanted.insert(parameter.name);
  }
  for (const SafetensorsTensor& tensor : file.tensors()) {
    if (!wanted.contains(tensor.name)) {
      throw IoError(file.path(), tensor.name, "fits no adapted linear of this model");
    }
  }
  model.refresh_adapters();
}

}  // namespace flashloom
