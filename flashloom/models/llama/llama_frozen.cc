#include "flashloom/models/llama/llama_frozen.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <set>
#include <string_view>
#include <utility>

#include "flashloom/core/error.h"
#include "flashloom/models/llama/llama_weights.h"

namespace flashloom {
namespace {

struct Range {
  int64_t first, last;
};

std::optional<int64_t> number(std::string_view text) {
  int64_t value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  return code == std::errc() && end == text.data() + text.size() && value >= 0
             ? std::optional(value)
             : std::nullopt;
}

// "3", "0-11".
std::optional<Range> range(std::string_view text) {
  const size_t dash = text.find('-');
  const auto first = number(text.substr(0, dash));
  const auto last = dash == std::string_view::npos ? first : number(text.substr(dash + 1));
  return first && last && *first <= *last ? std::optional(Range{*first, *last}) : std::nullopt;
}

// Whether `name` is of the form `pattern`.
bool matches(std::string_view pattern, std::string_view name) {
  size_t at = 0;
  size_t in_name = 0;
  std::optional<std::pair<size_t, size_t>> star;  // behind the last one, and what it has taken
  while (in_name < name.size()) {
    if (at < pattern.size() && pattern[at] == '*') {
      star = {++at, in_name};
    } else if (at < pattern.size() && (pattern[at] == '?' || pattern[at] == name[in_name])) {
      ++at;
      ++in_name;
    } else if (star) {  // it takes one more character
      at = star->first;
      in_name = ++star->second;
    } else {
      return false;
    }
  }
  return pattern.find_first_not_of('*', at) == std::string_view::npos;
}

// Letters and digits alone are a word or a number; names of tensors have a dot.
bool names_tensors(std::string_view text) {
  return text.find_first_of("*?_") != std::string_view::npos ||
         (text.find('.') != std::string_view::npos && !number(text.substr(0, 1)));
}

[[noreturn]] void refuse(std::string_view expected, std::string_view got) {
  throw InvalidArgument("parse_frozen", "names", expected, got);
}

}  // namespace

bool LlamaFrozen::layer(int64_t index) const {
  return std::binary_search(layers.begin(), layers.end(), index);
}

bool LlamaFrozen::tensor(std::string_view name) const {
  if ((embeddings && name == kLlamaEmbeddingName) || (head && name == kLlamaHeadName) ||
      (norms && name.find("norm") != std::string_view::npos)) {
    return true;
  }
  if (const auto index = llama_layer_of(name); index && layer(*index)) {
    return true;
  }
  return std::any_of(names.begin(), names.end(),
                     [&](const std::string& pattern) { return matches(pattern, name); });
}

LlamaFrozen parse_frozen(std::span<const std::string> names, const ModelConfig& config) {
  LlamaFrozen frozen;
  std::set<int64_t> layers;
  std::set<std::string> patterns;
  const std::vector<LlamaTensorSize> tensors = llama_tensor_sizes(config);
  for (const std::string& name : names) {
    if (name == "embeddings") {
      frozen.embeddings = true;
    } else if (name == "norms") {
      frozen.norms = true;
    } else if (name == "head") {
      if (config.tied_embeddings) {
        refuse("\"embeddings\": the head of this model is its embedding", "\"head\"");
      }
      frozen.head = true;
    } else if (names_tensors(name)) {
      const bool found = std::any_of(tensors.begin(), tensors.end(), [&](const auto& tensor) {
        return matches(name, tensor.name);
      });
      if (!found) {
        refuse(fmt::format("a tensor of this model, as \"{}\" or \"*.k_proj.*\"",
                           tensors[tensors.size() / 2].name),
               fmt::format("\"{}\"", name));
      }
      patterns.insert(name);
    } else {
      const std::optional<Range> found = range(name);
      if (!found || found->last >= config.layers) {
        refuse(
            fmt::format("embeddings, head, norms, layers of 0-{}, or tensors by name (*.k_proj.*)",
                        config.layers - 1),
            fmt::format("\"{}\"", name));
      }
      for (int64_t n = found->first; n <= found->last; ++n) {
        layers.insert(n);
      }
    }
  }
  frozen.layers.assign(layers.begin(), layers.end());
  frozen.names.assign(patterns.begin(), patterns.end());
  if (std::all_of(tensors.begin(), tensors.end(),
                  [&](const auto& tensor) { return frozen.tensor(tensor.name); })) {
    refuse("something left to train", "everything");
  }
  return frozen;
}

std::string describe(const LlamaFrozen& frozen) {
  std::string text;
  const auto add = [&](const std::string& part) { text += (text.empty() ? "" : ", ") + part; };
  if (frozen.embeddings) {
    add("embeddings");
  }
  if (frozen.head) {
    add("head");
  }
  if (frozen.norms) {
    add("norms");
  }
  for (size_t i = 0; i < frozen.layers.size();) {
    size_t end = i + 1;
    while (end < frozen.layers.size() && frozen.layers[end] == frozen.layers[end - 1] + 1) {
      ++end;
    }
    add(end == i + 1 ? fmt::format("{}", frozen.layers[i])
                     : fmt::format("{}-{}", frozen.layers[i], frozen.layers[end - 1]));
    i = end;
  }
  for (const std::string& name : frozen.names) {
    add(name);
  }
  return text.empty() ? "nothing" : text;
}

}  // namespace flashloom
