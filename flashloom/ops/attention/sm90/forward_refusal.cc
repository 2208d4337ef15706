#include <fmt/format.h>

#include <algorithm>

#include "flashloom/ops/attention/sm90/attention_sm90.h"
#include "flashloom/ops/attention/sm90/refusal.h"

namespace flashloom::sm90 {
namespace {

constexpr int64_t kMaxDim = 256;
// Tiles of kernels that walk lists: 128 queries and keys that divide 128, or 64 keys.
constexpr int64_t kBlockRows = 128;

std::string block_refusal(const AttentionBlocks& blocks, int64_t block_keys) {
  if (blocks.block_rows % kBlockRows != 0 || blocks.block_keys % block_keys != 0) {
    return fmt::format("blocks of {} x {}", blocks.block_rows, blocks.block_keys);
  }
  if (reinterpret_cast<uintptr_t>(blocks.bits.data) % 16 != 0) {
    return "bits of blocks that do not start at a multiple of 16 bytes";
  }
  return "";
}

}  // namespace

std::string attention_forward_refusal(const AttentionOutputs& outputs,
                                      const AttentionInputs& inputs,
                                      const AttentionOptions& options) {
  if (std::string refusal = common_refusal(inputs, options); !refusal.empty()) {
    return refusal;
  }

  const struct {
    const char* name;
    ConstTensorView view;
  } tensors[] = {{"q", inputs.q}, {"k", inputs.k}, {"v", inputs.v}, {"out", outputs.out}};

  for (const auto& [name, view] : tensors) {
    // Rows of 16 bytes and more: narrower ones cannot be mapped, but those behind the width of the
    // tensor are filled with zeros.
    const int64_t columns = view.shape[view.rank - 1];
    if (columns > kMaxDim || columns % 8 != 0) {
      return fmt::format("{} with rows of {}", name, columns);
    }
    if (view.size() == 0) {
      continue;  // nothing to copy
    }
    if (std::string refusal = tensor_refusal(name, view, inputs.q.dtype); !refusal.empty()) {
      return refusal;
    }
  }
  const AttentionScore& score = options.score;
  if (options.blocks.block_rows > 0) {
    const int64_t columns =
        std::max(inputs.q.shape[inputs.q.rank - 1], inputs.v.shape[inputs.v.rank - 1]);
    const int64_t block_keys = columns <= 64 && !has_rule(options) ? 64 : 128;
    if (std::string refusal = block_refusal(options.blocks, block_keys); !refusal.empty()) {
      return refusal;
    }
  }
  return first_used({
      {"ALiBi slopes that are not f32",
       score.alibi_slopes && score.alibi_slopes.dtype != DType::f32},
      {"the entropy output", static_cast<bool>(outputs.entropy)},
      {"an lse that is not f32", outputs.lse && outputs.lse.dtype != DType::f32},
      {"sinks that are not f32 side by side",
       score.sinks && (score.sinks.dtype != DType::f32 || score.sinks.strides[0] != 1)},
  });
}

}  // namespace flashloom::sm90
