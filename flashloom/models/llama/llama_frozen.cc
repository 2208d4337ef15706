#include "flashloom/models/llama/llama_frozen.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <set>
#include <string_view>

#include "flashloom/core/error.h"

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

[[noreturn]] void refuse(std::string_view expected, std::string_view got) {
  throw InvalidArgument("parse_frozen", "names", expected, got);
}

}  // namespace

bool LlamaFrozen::layer(int64_t index) const {
  return std::binary_search(layers.begin(), layers.end(), index);
}

LlamaFrozen parse_frozen(std::span<const std::string> names, const ModelConfig& config) {
  LlamaFrozen frozen;
  std::set<int64_t> layers;
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
    } else {
      const std::optional<Range> found = range(name);
      if (!found || found->last >= config.layers) {
        refuse(fmt::format("embeddings, head, norms, or layers of 0-{}", config.layers - 1),
               fmt::format("\"{}\"", name));
      }
      for (int64_t n = found->first; n <= found->last; ++n) {
        layers.insert(n);
      }
    }
  }
  frozen.layers.assign(layers.begin(), layers.end());
  const bool all_layers = static_cast<int64_t>(layers.size()) == config.layers;
  if (all_layers && frozen.embeddings && frozen.norms && (frozen.head || config.tied_embeddings)) {
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
  return text.empty() ? "nothing" : text;
}

}  // namespace flashloom
