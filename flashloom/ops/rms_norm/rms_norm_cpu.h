#pragma once

#include "flashloom/ops/rms_norm/rms_norm.h"

namespace flashloom::detail {

// The contracts of rms_norm.h for checked arguments in CPU memory.
void rms_norm_forward_cpu(const TensorView& out, const TensorView& inverse_rms,
                          const TensorView& sum, const ConstTensorView& input,
                          const ConstTensorView& residual, const ConstTensorView& weight,
                          float epsilon);
void rms_norm_backward_cpu(const TensorView& dinput, const TensorView& dweight,
                           const ConstTensorView& dout, const ConstTensorView& dresidual,
                           const ConstTensorView& input, const ConstTensorView& inverse_rms,
                           const ConstTensorView& weight, float* workspace);

// Rows of a partial dweight: a tile of its own for every 32 rows, at most 64 tiles, so that the
// workspace stays small and the tiles never depend on the number of threads.
int64_t rms_norm_backward_tile_rows(int64_t rows);

}  // namespace flashloom::detail
