// Writes a tokenizer the way Hugging Face reads it.
#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "flashloom/json/json.h"
#include "flashloom/text/tokenizer_data.h"
#include "flashloom/text/tokenizer_gguf.h"

namespace flashloom {
namespace {

Json byte_level(bool use_regex) {
  return {{"type", "ByteLevel"},
          {"add_prefix_space", false},
          {"trim_offsets", true},
          {"use_regex", use_regex}};
}

Json pre_tokenizer_json(KnownPattern pattern) {
  if (pattern == KnownPattern::kGpt2) {
    return byte_level(true);
  }
  Json first;
  if (pattern == KnownPattern::kDigitsGpt2) {
    first = {{"type", "Digits"}, {"individual_digits", true}};
  } else {
    const std::string_view regex = pattern == KnownPattern::kQwen2 ? kQwen2Pattern : kLlama3Pattern;
    first = {{"type", "Split"},
             {"pattern", {{"Regex", regex}}},
             {"behavior", "Isolated"},
             {"invert", false}};
  }
  Json steps = Json::array();
  steps.push_back(std::move(first));
  steps.push_back(byte_level(pattern == KnownPattern::kDigitsGpt2));
  return {{"type", "Sequence"}, {"pretokenizers", std::move(steps)}};
}

Json special_piece(std::string_view token) {
  return {{"SpecialToken", {{"id", token}, {"type_id", 0}}}};
}

Json text_piece(const char* name) {
  return {{"Sequence", {{"id", name}, {"type_id", 0}}}};
}

Json post_processor_json(const Tokenizer& tokenizer) {
  if (tokenizer.prefix_ids().empty() && tokenizer.suffix_ids().empty()) {
    return byte_level(true);
  }
  Json single = Json::array();
  Json pair = Json::array();
  Json special_tokens = Json::object();
  const auto add = [&](std::span<const int32_t> ids, Json& pieces) {
    for (const int32_t id : ids) {
      const std::string token(tokenizer.token(id));
      pieces.push_back(special_piece(token));
      special_tokens[token] = {
          {"id", token}, {"ids", Json::array({id})}, {"tokens", Json::array({token})}};
    }
  };
  add(tokenizer.prefix_ids(), single);
  single.push_back(text_piece("A"));
  add(tokenizer.suffix_ids(), single);
  pair = single;
  add(tokenizer.prefix_ids(), pair);
  pair.push_back(text_piece("B"));
  add(tokenizer.suffix_ids(), pair);
  Json processors = Json::array();
  processors.push_back(byte_level(true));
  processors.push_back({{"type", "TemplateProcessing"},
                        {"single", std::move(single)},
                        {"pair", std::move(pair)},
                        {"special_tokens", std::move(special_tokens)}});
  return {{"type", "Sequence"}, {"processors", std::move(processors)}};
}

Json added_token_json(const AddedToken& token) {
  return {{"id", token.id},          {"content", token.content}, {"single_word", token.single_word},
          {"lstrip", token.lstrip},  {"rstrip", token.rstrip},   {"normalized", token.normalized},
          {"special", token.special}};
}

std::string write_tokenizer_json(const Tokenizer& tokenizer, const GgufVocabulary& vocabulary) {
  const GgufPreTokenizer& pre_tokenizer = find_gguf_pre_tokenizer(vocabulary);
  Json added = Json::array();
  for (const AddedToken& token : gguf_added_tokens(vocabulary)) {
    added.push_back(added_token_json(token));
  }
  Json root = {{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}};
  root["added_tokens"] = std::move(added);
  root["normalizer"] = pre_tokenizer.nfc ? Json{{"type", "NFC"}} : Json();
  root["pre_tokenizer"] = pre_tokenizer_json(pre_tokenizer.pattern);
  root["post_processor"] = post_processor_json(tokenizer);
  root["decoder"] = byte_level(true);
  root["model"] = {{"type", "BPE"},
                   {"dropout", nullptr},
                   {"unk_token", nullptr},
                   {"continuing_subword_prefix", ""},
                   {"end_of_word_suffix", ""},
                   {"fuse_unk", false},
                   {"byte_fallback", false},
                   {"ignore_merges", pre_tokenizer.ignore_merges}};
  // The vocabulary, and the merges that end the file, are written by hand: an entry a line.
  std::string text = root.dump();
  text.resize(text.size() - 2);  // }}
  text += ",\"vocab\":{";
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) {
    text += fmt::format("{}{}:{}", id == 0 ? "" : ",\n", Json(vocabulary.tokens[id]).dump(), id);
  }
  text += "},\"merges\":[";
  for (size_t i = 0; i < vocabulary.merges.size(); ++i) {
    text += fmt::format("{}{}", i == 0 ? "" : ",\n", Json(vocabulary.merges[i]).dump());
  }
  text += "]}}\n";
  return text;
}

std::string write_tokenizer_config(const Tokenizer& tokenizer) {
  Json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                 {"clean_up_tokenization_spaces", false}};
  const auto add = [&](const char* key, std::optional<int32_t> id) {
    if (id) {
      config[key] = tokenizer.token(*id);
    }
  };
  add("bos_token", tokenizer.bos_id());
  add("eos_token", tokenizer.eos_id());
  add("unk_token", tokenizer.unknown_id());
  add("pad_token", tokenizer.padding_id());
  if (!tokenizer.chat_template().empty()) {
    config["chat_template"] = tokenizer.chat_template();
  }
  return config.dump(2) + "\n";
}

}  // namespace

std::vector<std::pair<std::string, std::string>> Tokenizer::files() const {
  auto files = data_->source_files;
  const auto add = [&](const char* name, auto make) {
    const bool known = std::any_of(files.begin(), files.end(),
                                   [name](const auto& file) { return file.first == name; });
    if (!known) {
      files.emplace_back(name, make());
    }
  };
  add("tokenizer.json", [&] { return write_tokenizer_json(*this, *data_->source_vocabulary); });
  add("tokenizer_config.json", [&] { return write_tokenizer_config(*this); });
  if (!chat_template().empty()) {
    add("chat_template.jinja", [&] { return chat_template(); });
  }
  return files;
}

}  // namespace flashloom
