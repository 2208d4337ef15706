#include "cli/simulate_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <initializer_list>
#include <iterator>
#include <string_view>

#include "flashloom/core/error.h"
#include "flashloom/io/mapped_file.h"
#include "flashloom/json/json.h"

namespace flashloom::cli {
namespace {

constexpr int64_t kMost = int64_t{1} << 20;

using Names = std::initializer_list<const char*>;

// Bidirectional unless is_decoder says otherwise.
constexpr std::string_view kEncoders[] = {
    "albert",     "bert",  "camembert",  "deberta", "deberta-v2", "distilbert", "electra",
    "modernbert", "mpnet", "nomic_bert", "roberta", "vit",        "xlm-roberta"};

class Config {
 public:
  Config(const Json& object, std::string path) : object_(object), path_(std::move(path)) {}

  // The first of these names that is there; null counts as absent.
  const Json* find(Names names) const {
    for (const char* name : names) {
      const Json* value = object_.find(name);
      if (value != nullptr && !value->is_null()) {
        return value;
      }
    }
    return nullptr;
  }

  int64_t number(Names names, int64_t otherwise = 0) const {
    const Json* value = find(names);
    if (value == nullptr) {
      if (otherwise == 0) {
        fail(*names.begin(), "missing");
      }
      return otherwise;
    }
    if (!value->is_integer() || value->number() < 1 || value->number() > kMost) {
      fail(*names.begin(), fmt::format("expected from 1 to {}, got {}", kMost, value->dump()));
    }
    return value->integer();
  }

  bool flag(const char* name, bool otherwise) const {
    const Json* value = find({name});
    if (value != nullptr && !value->is_boolean()) {
      fail(name, "expected true or false, got " + value->dump());
    }
    return value == nullptr ? otherwise : value->boolean();
  }

  std::string text(const char* name) const {
    const Json* value = find({name});
    return value != nullptr && value->is_string() ? value->string() : "";
  }

  [[noreturn]] void fail(std::string_view field, const std::string& what) const {
    throw IoError(path_, field, what);
  }

 private:
  const Json& object_;
  std::string path_;
};

// Layers that see a window of keys, and the most keys with which nothing is hidden from a query.
struct Windows {
  int64_t layers = 0;
  int64_t keys = 0;
};

Windows windows_of(const Config& config, const std::string& type, int64_t layers) {
  if (type == "modernbert") {
    const int64_t every = config.number({"global_attn_every_n_layers"}, 3);
    // Half the window to either side.
    return {layers - (layers + every - 1) / every, config.number({"local_attention"}, 128) / 2 + 1};
  }
  if (const Json* kinds = config.find({"layer_types"}); kinds != nullptr && kinds->is_array()) {
    int64_t windowed = 0;
    for (const Json& kind : kinds->elements()) {
      const std::string name = kind.is_string() ? kind.string() : kind.dump();
      if (name == "full_attention") {
        continue;
      }
      if (name != "sliding_attention" && name != "chunked_attention") {
        config.fail("layer_types", "expected layers of attention, got " + name);
      }
      ++windowed;
    }
    return windowed == 0
               ? Windows{}
               : Windows{windowed, config.number({"sliding_window", "attention_chunk_size"})};
  }
  // Qwen's window is off unless it says otherwise.
  if (config.find({"sliding_window"}) == nullptr ||
      !config.flag("use_sliding_window", !type.starts_with("qwen"))) {
    return {};
  }
  const int64_t pattern = config.number({"sliding_window_pattern"}, type == "gemma2" ? 2 : kMost);
  const int64_t full = config.find({"max_window_layers"}) != nullptr
                           ? std::min(layers, config.number({"max_window_layers"}))
                           : layers / pattern;
  return {layers - full, config.number({"sliding_window"})};
}

}  // namespace

ModelAttention read_model_attention(const std::string& given,
                                    const systolic::AttentionProblem& asked) {
  std::filesystem::path file = given;
  if (std::filesystem::is_directory(file)) {
    file /= "config.json";
  }
  const std::string path = file.string();
  const Json whole = parse_strict_json(MappedFile(path).text(), path);
  if (!whole.is_object()) {
    throw IoError(path, "", "expected a JSON object: a model's config.json");
  }
  const Json* text_part = whole.find("text_config");
  const bool nested = text_part != nullptr && text_part->is_object();
  const Config config(nested ? *text_part : whole, path);
  if (config.flag("is_encoder_decoder", false)) {
    config.fail("is_encoder_decoder",
                "expected layers that are alike, got an encoder and a decoder");
  }
  ModelAttention model{.type = config.text("model_type"), .problem = asked};
  systolic::AttentionProblem& problem = model.problem;
  model.layers = config.number({"num_hidden_layers", "n_layer", "n_layers", "num_layers"});
  const int64_t heads = config.number({"num_attention_heads", "n_head", "n_heads"});
  // DeepSeek projects keys and values up for every head.
  const bool latent = config.find({"kv_lora_rank"}) != nullptr;
  const int64_t key_heads =
      latent || config.flag("multi_query", false)
          ? (latent ? heads : 1)
          : config.number({"num_key_value_heads", "num_kv_heads", "n_head_kv"}, heads);
  if (heads % key_heads != 0) {
    config.fail("num_key_value_heads",
                fmt::format("expected a divisor of {} heads, got {}", heads, key_heads));
  }
  int64_t dim = 0;
  if (latent) {
    dim = config.number({"qk_nope_head_dim"}) + config.number({"qk_rope_head_dim"});
  } else if (config.find({"head_dim"}) != nullptr) {
    dim = config.number({"head_dim"});
  } else {
    const int64_t hidden = config.number({"hidden_size", "n_embd", "d_model", "dim"});
    if (hidden % heads != 0) {
      config.fail("hidden_size",
                  fmt::format("expected a multiple of {} heads, got {}", heads, hidden));
    }
    dim = hidden / heads;
  }
  problem.heads = static_cast<int>(heads);
  problem.key_heads = static_cast<int>(key_heads);
  problem.head_dim = static_cast<int>(dim);
  problem.value_dim = static_cast<int>(config.number({"v_head_dim"}, dim));
  problem.causal = asked.causal || config.flag("is_decoder", false) ||
                   std::ranges::find(kEncoders, model.type) == std::end(kEncoders);
  const Windows windows = windows_of(config, model.type, model.layers);
  const int keys = problem.keys == 0 ? problem.queries : problem.keys;
  if (windows.layers > 0 && keys > windows.keys) {
    config.fail(
        "sliding_window",
        fmt::format("expected layers that see every key, got windows in {} of {} layers, which "
                    "hide keys beyond {}: the array masks diagonals and tails alone",
                    windows.layers, model.layers, windows.keys));
  }
  return model;
}

}  // namespace flashloom::cli
