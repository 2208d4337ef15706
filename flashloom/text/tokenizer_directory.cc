// What the files around tokenizer.json say: special tokens, end tokens, the chat template.
#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "flashloom/core/error.h"
#include "flashloom/json/json.h"
#include "flashloom/text/tokenizer_data.h"

namespace flashloom {
namespace {

std::optional<std::string> read_file(const std::filesystem::path& path) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) {
    return std::nullopt;
  }
  std::ifstream stream(path, std::ios::binary);
  std::ostringstream text;
  text << stream.rdbuf();
  if (!stream) {
    throw IoError(path.string(), "", "cannot be read");
  }
  return std::move(text).str();
}

/// One of the JSON files of the directory; an absent file is an empty object.
class ConfigFile {
 public:
  explicit ConfigFile(const std::filesystem::path& path) : name_(path.string()) {
    text_ = read_file(path);
    if (!text_) {
      return;
    }
    value_ = parse_strict_json(*text_, name_);
    if (!value_.is_object()) {
      throw IoError(name_, "", fmt::format("expected an object, got {}", value_.type_name()));
    }
  }

  const std::string& name() const { return name_; }

  const std::optional<std::string>& text() const { return text_; }

  /// The member, or null.
  const Json& find(const std::string& key) const {
    static const Json kNull;
    const Json* found = value_.find(key);
    return found == nullptr ? kNull : *found;
  }

  [[noreturn]] void fail(const std::string& key, const std::string& what) const {
    throw IoError(name_, key, what);
  }

  /// A special token: a string, or an object with the string as `content`. Empty if absent.
  std::string token(const std::string& key) const {
    const Json* value = &find(key);
    if (value->is_object() && value->contains("content")) {
      value = &value->at("content");
    }
    if (value->is_null()) {
      return {};
    }
    if (!value->is_string()) {
      fail(key, fmt::format("expected a token, got {}", value->type_name()));
    }
    return value->string();
  }

  /// An id, or a list of ids, below `size`.
  std::vector<int32_t> ids(const std::string& key, size_t size) const {
    const Json& value = find(key);
    std::vector<int32_t> result;
    const auto add = [&](const Json& id) {
      if (!id.is_integer()) {
        fail(key, fmt::format("expected an id or a list of ids, got {}", id.type_name()));
      }
      if (id.number() < 0 || id.number() >= static_cast<double>(size)) {
        fail(key, fmt::format("id {}, expected 0 to {}", id.dump(), size - 1));
      }
      result.push_back(static_cast<int32_t>(id.integer()));
    };
    if (value.is_array()) {
      for (const Json& id : value.elements()) {
        add(id);
      }
    } else if (!value.is_null()) {
      add(value);
    }
    return result;
  }

  std::optional<bool> boolean(const std::string& key) const {
    const Json& value = find(key);
    if (value.is_null()) {
      return std::nullopt;
    }
    if (!value.is_boolean()) {
      fail(key, fmt::format("expected a boolean, got {}", value.type_name()));
    }
    return value.boolean();
  }

 private:
  std::string name_;
  std::optional<std::string> text_;
  Json value_ = Json::object();
};

/// chat_template: a string, or a list of {name, template} of which "default" counts.
std::string read_chat_template(const ConfigFile& config) {
  const Json& value = config.find("chat_template");
  const auto text = [&](const Json& source) {
    if (!source.is_string()) {
      config.fail("chat_template", fmt::format("expected a string, got {}", source.type_name()));
    }
    return source.string();
  };
  if (value.is_null()) {
    return {};
  }
  if (!value.is_array()) {
    return text(value);
  }
  for (const Json& named : value.elements()) {
    if (!named.is_object() || !named.contains("name") || !named.contains("template")) {
      config.fail("chat_template", "expected a list of objects with 'name' and 'template'");
    }
    if (named.at("name") == "default") {
      return text(named.at("template"));
    }
  }
  return {};
}

}  // namespace

Tokenizer Tokenizer::from_directory(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / "tokenizer.json";
  const auto text = read_file(path);
  if (!text) {
    throw IoError(path.string(), "", "no such file");
  }
  auto data = read_tokenizer_json(*text, path.string());
  const ConfigFile config(directory / "tokenizer_config.json");
  const ConfigFile special_tokens(directory / "special_tokens_map.json");
  const ConfigFile generation(directory / "generation_config.json");
  const ConfigFile model(directory / "config.json");

  const auto special = [&](const std::string& key, bool required) -> std::optional<int32_t> {
    for (const ConfigFile* file : {&config, &special_tokens}) {
      const std::string token = file->token(key);
      if (token.empty()) {
        continue;
      }
      const auto found = data->ids.find(token);
      if (found != data->ids.end()) {
        data->tokens[static_cast<size_t>(found->second)].special = true;
        return found->second;
      }
      if (required) {
        file->fail(key, fmt::format("the token '{}' is not in tokenizer.json", token));
      }
    }
    return std::nullopt;
  };
  data->bos_id = special("bos_token", true);
  data->padding_id = special("pad_token", false);
  if (const auto unknown = special("unk_token", false)) {
    data->unknown_id = unknown;
  }
  if (const auto eos = special("eos_token", true)) {
    data->end_ids.push_back(*eos);
  }
  for (const ConfigFile* file : {&generation, &model}) {
    for (const int32_t id : file->ids("eos_token_id", data->tokens.size())) {
      if (std::find(data->end_ids.begin(), data->end_ids.end(), id) == data->end_ids.end()) {
        data->end_ids.push_back(id);
      }
    }
  }
  if (!data->end_ids.empty()) {
    data->eos_id = data->end_ids.front();
  }

  // transformers 5 replaces the template of tokenizer.json by these two where either is given.
  const auto add_bos = config.boolean("add_bos_token");
  const auto add_eos = config.boolean("add_eos_token");
  if (add_bos || add_eos) {
    data->prefix_ids.clear();
    data->suffix_ids.clear();
    const auto add = [](bool wanted, const std::optional<int32_t>& id, std::vector<int32_t>& to) {
      if (wanted && id) {
        to.push_back(*id);
      }
    };
    add(add_bos.value_or(false), data->bos_id, data->prefix_ids);
    add(add_eos.value_or(false), data->eos_id, data->suffix_ids);
  }

  const auto jinja = read_file(directory / "chat_template.jinja");
  data->chat_template = jinja ? *jinja : read_chat_template(config);
  const auto keep = [&](const char* name, const std::optional<std::string>& content) {
    if (content) {
      data->source_files.emplace_back(name, *content);
    }
  };
  keep("tokenizer_config.json", config.text());
  keep("special_tokens_map.json", special_tokens.text());
  keep("chat_template.jinja", jinja);
  return Tokenizer(std::move(data));
}

}  // namespace flashloom
