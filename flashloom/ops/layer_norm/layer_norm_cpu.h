#pragma once

#include "flashloom/ops/layer_norm/layer_norm.h"

namespace flashloom::detail {

// The contracts of layer_norm.h for checked arguments in CPU memory.
void layer_norm_forward_cpu(const TensorView& out, const TensorView& mean,
                            const TensorView& inverse_deviation, const TensorView& sum,
                            const ConstTensorView& input, const ConstTensorView& residual,
                            const ConstTensorView& weight, const ConstTensorView& bias,
                            float epsilon);
void layer_norm_backward_cpu(const TensorView& dinput, const TensorView& dweight,
                             const TensorView& dbias, const ConstTensorView& dout,
                             const ConstTensorView& dresidual, const ConstTensorView& input,
                             const ConstTensorView& mean, const ConstTensorView& inverse_deviation,
                             const ConstTensorView& weight, float* workspace);

// Rows of a partial dweight and dbias: a tile of its own for every 32 rows, at most 64 tiles, so
// that the workspace stays small and the tiles never depend on the number of threads.
int64_t layer_norm_backward_tile_rows(int64_t rows);

}  // namespace flashloom::detail
