#include <fmt/format.h>

#include "flashloom/ops/attention/sm90/attention_sm90.h"
#include "flashloom/ops/attention/sm90/refusal.h"

namespace flashloom::sm90 {
namespace {

// The tiles of the general kernel: blocks of a mask are whole tiles.
constexpr int64_t kMaskQueries = 64;
constexpr int64_t kMaskKeys = 128;

std::string gradient_refusal(const char* name, const ConstTensorView& view, DType storage,
                             int64_t dim) {
  if (view.dtype != DType::f32) {
    return tensor_refusal(name, view, storage, dim);
  }
  // Whole rows of f32 are written in 8-byte and larger pieces.
  return tensor_refusal(name, view, DType::f32, dim);
}

std::string scalars_refusal(const char* name, const ConstTensorView& view) {
  return view && view.dtype != DType::f32 ? fmt::format("{} in {}", name, dtype_name(view.dtype))
                                          : "";
}

std::string blocks_refusal(const AttentionBlocks& blocks) {
  if (!blocks.row_offsets ||
      (blocks.block_rows % kMaskQueries == 0 && blocks.block_keys % kMaskKeys == 0)) {
    return "";
  }
  return fmt::format("a block mask of {} x {} that is no multiple of {} x {}", blocks.block_rows,
                     blocks.block_keys, kMaskQueries, kMaskKeys);
}

}  // namespace

std::string attention_backward_refusal(const AttentionGradients& gradients,
                                       const AttentionInputs& inputs, const AttentionSaved& saved,
                                       const AttentionOptions& options) {
  if (std::string refusal = common_refusal(inputs, options); !refusal.empty()) {
    return refusal;
  }
  const int64_t dim = inputs.q.dim(-1);
  if (dim != 64 && dim != 128) {
    return fmt::format("head dimension {}", dim);
  }

  const struct {
    const char* name;
    ConstTensorView view;
  } tensors[] = {
      {"q", inputs.q}, {"k", inputs.k}, {"v", inputs.v}, {"out", saved.out}, {"dout", saved.dout}};

  for (const auto& [name, view] : tensors) {
    if (view.size() == 0) {
      return fmt::format("an empty {}", name);
    }
    if (std::string refusal = tensor_refusal(name, view, inputs.q.dtype, dim); !refusal.empty()) {
      return refusal;
    }
  }

  const struct {
    const char* name;
    ConstTensorView view;
  } results[] = {{"dq", gradients.dq}, {"dk", gradients.dk}, {"dv", gradients.dv}};

  for (const auto& [name, view] : results) {
    if (std::string refusal = gradient_refusal(name, view, inputs.q.dtype, dim); !refusal.empty()) {
      return refusal;
    }
  }

  const struct {
    const char* name;
    ConstTensorView view;
  } scalars[] = {{"an lse", saved.lse},
                 {"dlse", saved.dlse},
                 {"sinks", options.score.sinks},
                 {"dsinks", gradients.dsinks},
                 {"ALiBi slopes", options.score.alibi_slopes}};

  for (const auto& [name, view] : scalars) {
    if (std::string refusal = scalars_refusal(name, view); !refusal.empty()) {
      return refusal;
    }
  }
  if (std::string refusal = blocks_refusal(options.blocks); !refusal.empty()) {
    return refusal;
  }
  return first_used({
      {"exclude_self", options.positions.exclude_self},
      {"a negative scale", options.score.scale < 0},
      {"dentropy", static_cast<bool>(saved.dentropy)},
      {"dbias", static_cast<bool>(gradients.dbias)},
  });
}

}  // namespace flashloom::sm90
