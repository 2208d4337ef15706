#pragma once

#include "flashloom/core/device.h"
#include "flashloom/core/tensor_view.h"

namespace flashloom {

struct GemvOptions {
  float alpha = 1;
  float beta = 0;  // 0: y is not read
};

/// y = alpha matrix x + beta y + bias: the products of decoding, one token at a time. The matrix is
/// read once, as fast as memory gives it.
///
/// Shapes:  y (N), matrix (N, K) with rows at any stride, x (K), bias optional (N).
/// Dtypes:  y, x, bias f32; matrix f32 or bf16; arithmetic f32.
/// Order:   each element is summed by one thread in one order: the same bits for any number of
///          threads.
/// Throws:  InvalidArgument.
void gemv(TensorView y, ConstTensorView matrix, ConstTensorView x, ConstTensorView bias = {},
          const GemvOptions& options = {}, Stream stream = {});

/// The oracle: float64 plain loops.
void gemv_reference(TensorView y, ConstTensorView matrix, ConstTensorView x,
                    ConstTensorView bias = {}, const GemvOptions& options = {});

}  // namespace flashloom
