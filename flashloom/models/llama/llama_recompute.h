#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace flashloom {

/// What a training step does not keep of each layer, but computes again in the backward pass: time
/// for memory. The gradients are the same bits at every level. Kept of a layer and token, in
/// numbers (C hidden size, I intermediate size, Q and K sizes of q and of k; LoRA's r a rank):
enum class LlamaRecompute : uint8_t {
  none,       // 4 C + 3 I + 2 Q + 2 K: nothing is done again
  norms,      // 2 C + 2 I + 2 Q + 2 K: the norms' outputs and SwiGLU's, a few operations each
  attention,  // 2 C + 2 I: also q, k, v and attention
  blocks,     // C: all of a layer but its last product
};

inline constexpr std::array<LlamaRecompute, 4> kLlamaRecomputeLevels = {
    LlamaRecompute::none, LlamaRecompute::norms, LlamaRecompute::attention, LlamaRecompute::blocks};

/// "none", "norms", "attention", "blocks".
std::string_view llama_recompute_name(LlamaRecompute level);

/// Throws InvalidArgument for any other name.
LlamaRecompute parse_llama_recompute(std::string_view name);

}  // namespace flashloom
