#pragma once

#include <cuda.h>

#include <cstdint>

#include "flashloom/core/tensor_view.h"

namespace flashloom::cuda {

/// A copy engine's map of a rank-4 tensor (d0, d1, rows, columns) of 16-bit elements: boxes of
/// `box_rows` x `columns` elements, a panel of PanelLayout<2 * columns> (64 or 32 columns),
/// coordinates (column, row, d1, d0).
/// Throws InvalidArgument if an address or stride is no multiple of 16 bytes.
CUtensorMap make_tile_map(const ConstTensorView& tensor, uint32_t box_rows, uint32_t columns = 64);

}  // namespace flashloom::cuda
