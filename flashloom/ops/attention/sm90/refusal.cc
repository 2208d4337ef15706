#include "flashloom/ops/attention/sm90/refusal.h"

#include <fmt/format.h>

#include <cstdlib>
#include <limits>

namespace flashloom::sm90 {
namespace {

// Device arithmetic adds up a position, a window bound (2^29 when unbounded) and a tile in 32 bits.
constexpr int64_t kMaxRows = std::numeric_limits<int32_t>::max() / 8;

// The copy engine wants 16-byte steps; the stores are 16 bytes wide.
bool is_aligned(const ConstTensorView& view) {
  if (reinterpret_cast<uintptr_t>(view.data) % 16 != 0) {
    return false;
  }
  for (int i = 0; i + 1 < view.rank; ++i) {
    if (view.shape[i] > 1 && view.strides[i] % 8 != 0) {
      return false;
    }
  }
  return true;
}

// Expanded and reversed tensors have no map.
bool has_positive_strides(const ConstTensorView& view) {
  for (int i = 0; i + 1 < view.rank; ++i) {
    if (view.shape[i] > 1 && view.strides[i] <= 0) {
      return false;
    }
  }
  return true;
}

}  // namespace

std::string first_used(std::initializer_list<RefusedField> fields) {
  for (const auto& [name, used] : fields) {
    if (used) {
      return name;
    }
  }
  return "";
}

std::string tensor_refusal(const char* name, const ConstTensorView& view, DType dtype) {
  if (view.dtype != dtype) {
    return fmt::format("{} in {} beside q in {}", name, dtype_name(view.dtype), dtype_name(dtype));
  }
  if (!is_aligned(view)) {
    return fmt::format("{} whose rows do not start at multiples of 16 bytes", name);
  }
  if (!has_positive_strides(view)) {
    return fmt::format("{} with a stride of 0 or less", name);
  }
  for (int i = 0; i < view.rank; ++i) {
    if (view.shape[i] > kMaxRows) {
      return fmt::format("{} with {} rows", name, view.shape[i]);
    }
  }
  return "";
}

std::string common_refusal(const AttentionInputs& inputs, const AttentionOptions& options) {
  const DType dtype = inputs.q.dtype;
  if (dtype != DType::bf16 && dtype != DType::f16) {
    return fmt::format("{} storage", dtype_name(dtype));
  }
  const AttentionPositions& positions = options.positions;
  for (const auto& position : {positions.offset, positions.query_start, positions.key_start}) {
    if (position && std::abs(*position) > kMaxRows) {
      return fmt::format("a position of {}", *position);
    }
  }
  return first_used({
      {"a page table", static_cast<bool>(options.sequences.page_table)},
      {"explicit positions", positions.query || positions.key || positions.query_count ||
                                 positions.key_count || positions.output_index},
      {"buckets", positions.query_bucket_offsets || positions.key_bucket_offsets},
      {"a gate", options.gate.kind != AttentionGate::Kind::none},
      {"a bias", static_cast<bool>(options.score.bias)},
      {"8-bit scales", options.fp8.q_scale || options.fp8.k_scale || options.fp8.v_scale ||
                           options.fp8.out_scale || options.fp8.amax_out},
      {"splits", options.execution.splits > 1},
  });
}

}  // namespace flashloom::sm90
