#include <fmt/format.h>

#include <algorithm>

#include "flashloom/ops/attention/sm90/attention_sm90.h"
#include "flashloom/ops/attention/sm90/refusal.h"

namespace flashloom::sm90 {
namespace {

// The tiles of the general kernel: blocks of a mask are whole tiles.
constexpr int64_t kMaskQueries = 64;
constexpr int64_t kMaskKeys = 128;
// Of kernels that take block masks or dentropy, and of the others.
constexpr int64_t kMaxGeneralColumns = 128;
constexpr int64_t kMaxColumns = 256;

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
  const int64_t value_dim = inputs.v.dim(-1);
  for (const int64_t columns : {dim, value_dim}) {
    // Others are padded in shared memory; the copy engine takes rows of whole 16 bytes.
    if (columns > kMaxColumns || columns % 8 != 0) {
      return fmt::format("head dimension {}", columns);
    }
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
    if (std::string refusal = tensor_refusal(name, view, inputs.q.dtype); !refusal.empty()) {
      return refusal;
    }
  }

  const struct {
    const char* name;
    ConstTensorView view;
  } results[] = {{"dq", gradients.dq}, {"dk", gradients.dk}, {"dv", gradients.dv}};

  for (const auto& [name, view] : results) {
    // Whole rows of f32 are written in 8-byte and larger pieces.
    const DType dtype = view.dtype == DType::f32 ? DType::f32 : inputs.q.dtype;
    if (std::string refusal = tensor_refusal(name, view, dtype); !refusal.empty()) {
      return refusal;
    }
  }

  const struct {
    const char* name;
    ConstTensorView view;
  } scalars[] = {{"an lse", saved.lse},
                 {"dlse", saved.dlse},
                 {"an entropy", saved.entropy},
                 {"dentropy", saved.dentropy},
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
  if (std::max(dim, value_dim) > kMaxGeneralColumns) {
    const std::string general = first_used({
        {"a block mask", static_cast<bool>(options.blocks.row_offsets)},
        {"dentropy", static_cast<bool>(saved.dentropy)},
    });
    if (!general.empty()) {
      return fmt::format("{} with head dimension {}", general, std::max(dim, value_dim));
    }
  }
  return first_used({
      {"dentropy of another order than 1", saved.dentropy && saved.entropy_order != 1},
      {"dbias", static_cast<bool>(gradients.dbias)},
  });
}

}  // namespace flashloom::sm90
