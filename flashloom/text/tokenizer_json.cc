#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <array>

#include "flashloom/core/error.h"
#include "flashloom/json/json.h"
#include "flashloom/text/tokenizer_data.h"

namespace flashloom {
namespace {

using simdjson::dom::element;
using simdjson::dom::element_type;

std::string_view type_name(element_type type) {
  switch (type) {
    case element_type::ARRAY:
      return "an array";
    case element_type::OBJECT:
      return "an object";
    case element_type::INT64:
    case element_type::UINT64:
      return "an integer";
    case element_type::DOUBLE:
      return "a number";
    case element_type::STRING:
      return "a string";
    case element_type::BOOL:
      return "a boolean";
    case element_type::NULL_VALUE:
      return "null";
  }
  return "something else";
}

/// A JSON value that knows where it stands, so that every error can say so.
class Node {
 public:
  Node(std::string_view file, std::string place, element value)
      : file_(file), place_(std::move(place)), value_(value) {}

  const std::string& place() const { return place_; }

  const element& value() const { return value_; }

  [[noreturn]] void fail(std::string_view what) const { throw IoError(file_, place_, what); }

  [[noreturn]] void fail_type(std::string_view expected) const {
    fail(fmt::format("expected {}, got {}", expected, type_name(value_.type())));
  }

  bool is_null() const { return value_.is_null(); }

  /// The member `key`; null and absent are the same.
  std::optional<Node> find(std::string_view key) const {
    if (!value_.is_object()) {
      fail_type("an object");
    }
    element member;
    if (value_.at_key(key).get(member) != simdjson::SUCCESS || member.is_null()) {
      return std::nullopt;
    }
    return Node(file_, child_place(key), member);
  }

  Node at(std::string_view key) const {
    auto member = find(key);
    if (!member) {
      fail(fmt::format("'{}' is missing", key));
    }
    return *std::move(member);
  }

  std::string_view string() const {
    std::string_view text;
    if (value_.get(text) != simdjson::SUCCESS) {
      fail_type("a string");
    }
    return text;
  }

  bool boolean() const {
    bool truth = false;
    if (value_.get(truth) != simdjson::SUCCESS) {
      fail_type("a boolean");
    }
    return truth;
  }

  bool boolean(std::string_view key, bool otherwise) const {
    const auto member = find(key);
    return member ? member->boolean() : otherwise;
  }

  int64_t integer() const {
    int64_t number = 0;
    if (!value_.is_int64() || value_.get(number) != simdjson::SUCCESS) {
      fail_type("an integer of 63 bits");
    }
    return number;
  }

  template <class Visit>  // visit(Node)
  void for_each(Visit visit) const {
    simdjson::dom::array array;
    if (value_.get(array) != simdjson::SUCCESS) {
      fail_type("an array");
    }
    size_t i = 0;
    for (const element item : array) {
      visit(Node(file_, fmt::format("{}[{}]", place_, i++), item));
    }
  }

 private:
  std::string child_place(std::string_view key) const {
    return place_.empty() ? std::string(key) : fmt::format("{}.{}", place_, key);
  }

  std::string_view file_;
  std::string place_;
  element value_;
};

[[noreturn]] void fail_syntax(std::string_view text, std::string_view file_name,
                              simdjson::error_code code) {
  // simdjson does not say where; a second parser does, where it sees a fault too.
  const auto fault = json_fault(text);
  const std::string place = fault ? fmt::format("byte {}", *fault) : "";
  throw IoError(file_name, place, fmt::format("not valid JSON: {}", simdjson::error_message(code)));
}

void read_normalizer(const Node& node, TokenizerDescription& description) {
  const std::string_view type = node.at("type").string();
  if (type == "NFC") {
    description.nfc = true;
  } else if (type == "Sequence") {
    node.at("normalizers").for_each([&](const Node& part) { read_normalizer(part, description); });
  } else {
    node.fail(fmt::format("the normalizer '{}' is not supported (NFC, Sequence)", type));
  }
}

SplitBehavior read_behavior(const Node& node) {
  constexpr std::array<std::pair<std::string_view, SplitBehavior>, 5> kBehaviors = {{
      {"Removed", SplitBehavior::kRemoved},
      {"Isolated", SplitBehavior::kIsolated},
      {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
      {"MergedWithNext", SplitBehavior::kMergedWithNext},
      {"Contiguous", SplitBehavior::kContiguous},
  }};
  const std::string_view name = node.string();
  for (const auto& [known, behavior] : kBehaviors) {
    if (name == known) {
      return behavior;
    }
  }
  node.fail(
      fmt::format("the behavior '{}' is not supported (Removed, Isolated, "
                  "MergedWithPrevious, MergedWithNext, Contiguous)",
                  name));
}

/// Appends the stages of `node`; `byte_level` is set once ByteLevel came, which must be the last:
/// behind it `tokenizers` sees not the text but its spelling in the byte alphabet.
void read_pre_tokenizer(const Node& node, TokenizerDescription& description, bool& byte_level) {
  const std::string_view type = node.at("type").string();
  if (byte_level) {
    node.fail(fmt::format("the pre-tokenizer '{}' behind ByteLevel is not supported", type));
  }
  PreTokenizerStage stage;
  if (type == "Sequence") {
    node.at("pretokenizers").for_each([&](const Node& part) {
      read_pre_tokenizer(part, description, byte_level);
    });
  } else if (type == "ByteLevel") {
    byte_level = true;
    if (node.boolean("add_prefix_space", true)) {
      stage.kind = PreTokenizerStage::kPrefixSpace;
      description.stages.push_back(stage);
    }
    if (node.boolean("use_regex", true)) {
      stage.kind = PreTokenizerStage::kPattern;
      stage.pattern = kGpt2Pattern;
      description.stages.push_back(stage);
    }
  } else if (type == "Digits") {
    stage.kind = PreTokenizerStage::kDigits;
    stage.individual = node.boolean("individual_digits", false);
    description.stages.push_back(stage);
  } else if (type == "Split") {
    const Node pattern = node.at("pattern");
    if (const auto regex = pattern.find("Regex")) {
      stage.kind = PreTokenizerStage::kPattern;
      stage.pattern = regex->string();
    } else if (const auto literal = pattern.find("String")) {
      stage.kind = PreTokenizerStage::kLiteral;
      stage.pattern = literal->string();
    } else {
      pattern.fail("expected 'Regex' or 'String'");
    }
    stage.behavior = read_behavior(node.at("behavior"));
    stage.invert = node.boolean("invert", false);
    description.stages.push_back(stage);
  } else {
    node.fail(fmt::format(
        "the pre-tokenizer '{}' is not supported (ByteLevel, Split, Digits, Sequence)", type));
  }
}

std::vector<int32_t> read_template_ids(const Node& processor, std::string_view name) {
  std::vector<int32_t> ids;
  processor.at("special_tokens").at(name).at("ids").for_each([&](const Node& id) {
    const int64_t value = id.integer();
    if (value < 0 || value > INT32_MAX) {
      id.fail(fmt::format("id {}, expected 0 to {}", value, INT32_MAX));
    }
    ids.push_back(static_cast<int32_t>(value));
  });
  return ids;
}

void read_post_processor(const Node& node, TokenizerDescription& description) {
  const std::string_view type = node.at("type").string();
  if (type == "Sequence") {
    node.at("processors").for_each([&](const Node& part) {
      read_post_processor(part, description);
    });
  } else if (type == "TemplateProcessing") {
    std::vector<int32_t> prefix;
    std::vector<int32_t> suffix;
    bool seen = false;
    node.at("single").for_each([&](const Node& piece) {
      if (const auto special = piece.find("SpecialToken")) {
        const std::vector<int32_t> ids = read_template_ids(node, special->at("id").string());
        std::vector<int32_t>& side = seen ? suffix : prefix;
        side.insert(side.end(), ids.begin(), ids.end());
      } else if (piece.find("Sequence")) {
        if (seen) {
          piece.fail("the text stands twice in the template");
        }
        seen = true;
      } else {
        piece.fail("expected 'SpecialToken' or 'Sequence'");
      }
    });
    if (!seen) {
      node.fail("the text is missing from the template");
    }
    std::vector<int32_t>& before = description.prefix_ids;
    std::vector<int32_t>& behind = description.suffix_ids;
    before.insert(before.begin(), prefix.begin(), prefix.end());
    behind.insert(behind.end(), suffix.begin(), suffix.end());
  } else if (type != "ByteLevel") {  // which only moves offsets
    node.fail(fmt::format(
        "the post-processor '{}' is not supported (TemplateProcessing, ByteLevel, Sequence)",
        type));
  }
}

void read_decoder(const Node& node) {
  const std::string_view type = node.at("type").string();
  if (type == "Sequence") {
    node.at("decoders").for_each([](const Node& part) { read_decoder(part); });
  } else if (type != "ByteLevel") {
    node.fail(fmt::format("the decoder '{}' is not supported (ByteLevel)", type));
  }
}

void refuse_affix(const Node& model, std::string_view key) {
  const auto affix = model.find(key);
  if (affix && !affix->string().empty()) {
    affix->fail(fmt::format("'{}' is not supported by byte-level BPE", affix->string()));
  }
}

void read_model(const Node& model, TokenizerDescription& description) {
  if (const auto type = model.find("type"); type && type->string() != "BPE") {
    type->fail(fmt::format("the model '{}' is not supported (BPE)", type->string()));
  }
  refuse_affix(model, "continuing_subword_prefix");
  refuse_affix(model, "end_of_word_suffix");
  if (const auto dropout = model.find("dropout")) {
    double rate = 0;
    if (dropout->value().get(rate) != simdjson::SUCCESS || rate != 0) {
      dropout->fail("dropout is not supported");
    }
  }
  if (const auto unknown = model.find("unk_token")) {
    description.unknown_token = unknown->string();
  }
  description.ignore_merges = model.boolean("ignore_merges", false);
  description.byte_fallback = model.boolean("byte_fallback", false);
  description.fuse_unknown = model.boolean("fuse_unk", false);

  const Node vocabulary = model.at("vocab");
  simdjson::dom::object entries;
  if (vocabulary.value().get(entries) != simdjson::SUCCESS) {
    vocabulary.fail_type("an object");
  }
  description.vocabulary.reserve(entries.size());
  for (const auto& [token, id] : entries) {
    int64_t number = 0;
    if (!id.is_int64() || id.get(number) != simdjson::SUCCESS) {
      vocabulary.fail(
          fmt::format("'{}': expected an integer of 63 bits, got {}", token, type_name(id.type())));
    }
    description.vocabulary.push_back({token, number});
  }

  const Node merges = model.at("merges");
  simdjson::dom::array pairs;
  if (merges.value().get(pairs) != simdjson::SUCCESS) {
    merges.fail_type("an array");
  }
  description.merges.reserve(pairs.size());
  size_t i = 0;
  for (const element pair : pairs) {
    std::string_view both;
    simdjson::dom::array parts;
    bool good = false;
    if (pair.get(both) == simdjson::SUCCESS) {
      const size_t space = both.find(' ');
      good = space != std::string_view::npos && both.find(' ', space + 1) == std::string_view::npos;
      if (good) {
        description.merges.emplace_back(both.substr(0, space), both.substr(space + 1));
      }
    } else if (pair.get(parts) == simdjson::SUCCESS && parts.size() == 2) {
      std::string_view left;
      std::string_view right;
      good =
          parts.at(0).get(left) == simdjson::SUCCESS && parts.at(1).get(right) == simdjson::SUCCESS;
      description.merges.emplace_back(left, right);
    }
    if (!good) {
      throw IoError(description.file_name, fmt::format("model.merges[{}]", i),
                    "expected \"left right\" or [\"left\", \"right\"]");
    }
    ++i;
  }
}

}  // namespace

void parse_tokenizer_json(std::string_view text, std::string_view file_name,
                          FunctionRef<void(const TokenizerDescription&)> use) {
  simdjson::dom::parser parser;
  element document;
  const auto code = parser.parse(text.data(), text.size()).get(document);
  if (code != simdjson::SUCCESS) {
    fail_syntax(text, file_name, code);
  }
  const Node root(file_name, "", document);
  TokenizerDescription description;
  description.file_name = file_name;
  description.vocabulary_place = "model.vocab";
  description.merges_place = "model.merges";
  read_model(root.at("model"), description);
  if (const auto normalizer = root.find("normalizer")) {
    read_normalizer(*normalizer, description);
  }
  bool byte_level = false;
  if (const auto pre_tokenizer = root.find("pre_tokenizer")) {
    read_pre_tokenizer(*pre_tokenizer, description, byte_level);
  }
  if (!byte_level) {
    throw IoError(file_name, "pre_tokenizer", "expected ByteLevel (byte-level BPE), found none");
  }
  read_decoder(root.at("decoder"));
  if (const auto post_processor = root.find("post_processor")) {
    read_post_processor(*post_processor, description);
  }
  if (const auto added_tokens = root.find("added_tokens")) {
    added_tokens->for_each([&](const Node& node) {
      AddedToken added;
      added.content = node.at("content").string();
      const Node id = node.at("id");
      const int64_t number = id.integer();
      if (number < 0 || number > INT32_MAX) {
        id.fail(fmt::format("id {}, expected 0 to {}", number, INT32_MAX));
      }
      added.id = static_cast<int32_t>(number);
      added.special = node.boolean("special", false);
      added.normalized = node.boolean("normalized", !added.special);
      added.single_word = node.boolean("single_word", false);
      added.lstrip = node.boolean("lstrip", false);
      added.rstrip = node.boolean("rstrip", false);
      description.added.push_back(std::move(added));
    });
  }
  use(description);
}

std::shared_ptr<Tokenizer::Data> read_tokenizer_json(std::string_view text,
                                                     std::string_view file_name) {
  std::shared_ptr<Tokenizer::Data> data;
  parse_tokenizer_json(text, file_name, [&](const TokenizerDescription& description) {
    data = make_tokenizer_data(description);
  });
  data->source_files = {{"tokenizer.json", std::string(text)}};
  return data;
}

}  // namespace flashloom
