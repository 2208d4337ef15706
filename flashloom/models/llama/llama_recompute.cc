#include "flashloom/models/llama/llama_recompute.h"

#include <fmt/format.h>

#include "flashloom/core/error.h"

namespace flashloom {

std::string_view llama_recompute_name(LlamaRecompute level) {
  constexpr std::array<std::string_view, kLlamaRecomputeLevels.size()> kNames = {
      "none", "norms", "attention", "blocks"};
  return kNames[static_cast<size_t>(level)];
}

LlamaRecompute parse_llama_recompute(std::string_view name) {
  for (const LlamaRecompute level : kLlamaRecomputeLevels) {
    if (name == llama_recompute_name(level)) {
      return level;
    }
  }
  throw InvalidArgument("parse_llama_recompute", "name", "none, norms, attention or blocks",
                        fmt::format("\"{}\"", name));
}

}  // namespace flashloom
