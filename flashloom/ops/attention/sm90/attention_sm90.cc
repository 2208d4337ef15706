#include "flashloom/ops/attention/sm90/attention_sm90.h"

#include <fmt/format.h>

#include <initializer_list>
#include <limits>

namespace flashloom::sm90 {
namespace {

// The copy engine wants 16-byte steps; the stores are 16 bytes wide.
bool is_aligned(const ConstTensorView& view) {
  if (reinterpret_cast<uintptr_t>(view.data) % 16 != 0 || view.strides[view.rank - 1] != 1) {
    return false;
  }
  for (int i = 0; i + 1 < view.rank; ++i) {
    if (view.shape[i] > 1 && view.strides[i] % 8 != 0) {
      return false;
    }
  }
  return true;
}

std::string tensor_refusal(const char* name, const ConstTensorView& view, DType dtype,
                           int64_t columns) {
  if (view.dtype != dtype) {
    return fmt::format("{} in {} beside q in {}", name, dtype_name(view.dtype), dtype_name(dtype));
  }
  if (view.shape[view.rank - 1] != columns) {
    return fmt::format("{} with rows of {}", name, view.shape[view.rank - 1]);
  }
  if (!is_aligned(view)) {
    return fmt::format("{} whose rows do not start at multiples of 16 bytes", name);
  }
  return "";
}

// What neither direction covers.
std::string common_refusal(const AttentionInputs& inputs, const AttentionOptions& options) {
  const DType dtype = inputs.q.dtype;
  const int64_t dim = inputs.q.shape[inputs.q.rank - 1];
  if (dtype != DType::bf16 && dtype != DType::f16) {
    return fmt::format("{} storage", dtype_name(dtype));
  }
  if (dim != 64 && dim != 128) {
    return fmt::format("head dimension {}", dim);
  }

  const struct {
    const char* name;
    const ConstTensorView& view;
  } tensors[] = {{"q", inputs.q}, {"k", inputs.k}, {"v", inputs.v}};

  for (const auto& [name, view] : tensors) {
    if (std::string refusal = tensor_refusal(name, view, dtype, dim); !refusal.empty()) {
      return refusal;
    }
    if (view.size() == 0) {
      return fmt::format("an empty {}", name);
    }
    for (int i = 0; i < view.rank; ++i) {
      if (view.shape[i] > std::numeric_limits<int32_t>::max() / 8) {
        return fmt::format("{} with {} rows", name, view.shape[i]);
      }
    }
  }
  const AttentionPositions& positions = options.positions;

  const struct {
    const char* name;
    bool used;
  } fields[] = {
      {"a page table", static_cast<bool>(options.sequences.page_table)},
      {"explicit positions", positions.query || positions.key || positions.query_count ||
                                 positions.key_count || positions.output_index},
      {"buckets", positions.query_bucket_offsets || positions.key_bucket_offsets},
      {"exclude_self", positions.exclude_self},
      {"a block mask", static_cast<bool>(options.blocks.row_offsets)},
      {"a gate", options.gate.kind != AttentionGate::Kind::none},
      {"a softcap", options.score.softcap != 0},
      {"a negative scale", options.score.scale < 0},
      {"ALiBi", static_cast<bool>(options.score.alibi_slopes)},
      {"a bias", static_cast<bool>(options.score.bias)},
      {"dropout", options.dropout.probability != 0},
      {"8-bit scales", options.fp8.q_scale || options.fp8.k_scale || options.fp8.v_scale ||
                           options.fp8.out_scale || options.fp8.amax_out},
      {"splits", options.execution.splits > 1},
  };

  for (const auto& [name, used] : fields) {
    if (used) {
      return name;
    }
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
  if (outputs.entropy) {
    return "the entropy output";
  }
  // A NaN behind the end would reach the result: the kernel masks P there but multiplies by V.
  if (options.sequences.used_query || options.sequences.used_key) {
    return "used lengths";
  }
  return tensor_refusal("out", outputs.out, inputs.q.dtype, inputs.q.shape[inputs.q.rank - 1]);
}

std::string attention_backward_refusal(const AttentionGradients& gradients,
                                       const AttentionInputs& inputs, const AttentionSaved& saved,
                                       const AttentionOptions& options) {
  if (std::string refusal = common_refusal(inputs, options); !refusal.empty()) {
    return refusal;
  }

  const struct {
    const char* name;
    bool used;
  } fields[] = {{"dentropy", static_cast<bool>(saved.dentropy)},
                {"sinks in the backward pass", options.score.sinks || gradients.dsinks},
                {"dbias", static_cast<bool>(gradients.dbias)},
                {"accumulate", gradients.accumulate},
                {"packed or padded sequences in the backward pass",
                 options.sequences.cu_query || options.sequences.cu_key ||
                     options.sequences.used_query || options.sequences.used_key}};

  for (const auto& [name, used] : fields) {
    if (used) {
      return name;
    }
  }

  const struct {
    const char* name;
    ConstTensorView view;
  } tensors[] = {{"out", saved.out},
                 {"dout", saved.dout},
                 {"dq", gradients.dq},
                 {"dk", gradients.dk},
                 {"dv", gradients.dv}};

  for (const auto& [name, view] : tensors) {
    const int64_t dim = inputs.q.shape[inputs.q.rank - 1];
    if (std::string refusal = tensor_refusal(name, view, inputs.q.dtype, dim); !refusal.empty()) {
      return refusal;
    }
  }
  return "";
}

}  // namespace flashloom::sm90
