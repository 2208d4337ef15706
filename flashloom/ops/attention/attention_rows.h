#pragma once

#include <cstdint>

#include "flashloom/core/tensor_view.h"

namespace flashloom {

/// Rows of one head of one sequence, from row `first` on: (rows, width), or (rows) of scalars.
/// Batched tensors are (B, heads, rows, ...), packed ones (heads, T, ...).
template <class View>
View attention_head_rows(const View& view, bool packed, int64_t sequence, int64_t head,
                         int64_t first) {
  const View rows = packed ? view.select(0, head) : view.select(0, sequence).select(0, head);
  return rows.slice(0, first, rows.dim(0) - first);
}

}  // namespace flashloom
