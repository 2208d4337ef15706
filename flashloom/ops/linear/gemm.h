#pragma once

#include "flashloom/core/device.h"
#include "flashloom/core/tensor_view.h"

namespace flashloom {

struct GemmOptions {
  bool transpose_a = false;
  bool transpose_b = false;
  float alpha = 1;
  float beta = 0;  // 0: c is not read
};

/// c = alpha op(a) op(b) + beta c.
///
/// Shapes:  op(a) (M, K), op(b) (K, N), c (M, N); rows at any stride, the last dimension
///          contiguous. c may overlap neither a nor b.
/// Dtypes:  f32 (products and sums in f32).
/// Order:   c is cut into fixed tiles, each computed by one thread over the whole of K, so the bits
///          do not depend on the number of threads. Inside parallel_for it runs on the caller's
///          thread.
/// Throws:  InvalidArgument.
void gemm(TensorView c, ConstTensorView a, ConstTensorView b, const GemmOptions& options = {},
          Stream stream = {});

/// The oracle: float64 plain loops. f32 or f64 tensors.
void gemm_reference(TensorView c, ConstTensorView a, ConstTensorView b,
                    const GemmOptions& options = {});

}  // namespace flashloom
