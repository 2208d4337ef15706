#pragma once

#include <span>
#include <vector>

#include "flashloom/core/block_format.h"
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
/// Dtypes:  f32; b may be bf16, which is read as it is stored and multiplied as f32: the bits are
///          those of b in f32.
/// Order:   each element of c is summed by one thread, in an order that depends on the shapes
/// alone,
///          so the bits do not depend on the number of threads. Inside parallel_for it runs on the
///          caller's thread.
/// Throws:  InvalidArgument.
void gemm(TensorView c, ConstTensorView a, ConstTensorView b, const GemmOptions& options = {},
          Stream stream = {});

/// One product of gemm_sum().
struct GemmTerm {
  ConstTensorView a;
  ConstTensorView b;
  bool transpose_a = false;
  bool transpose_b = false;
  float alpha = 1;
  /// Instead of b: its rows in blocks of few bits, decoded a tile at a time on the way into the
  /// product. The bits are those of the decoded numbers in f32 if c has more than 8 rows (with
  /// fewer, products of f32 are summed another way).
  BlockMatrix b_blocks = {};
};

/// c = sum of alpha op(a) op(b) over the terms + beta c, or + bias in every row. Each tile of c is
/// finished while it is in cache, so a product of small depth beside a large one (an adapter), or
/// a bias, costs no pass over c.
///
/// Shapes:  as gemm(), a depth for each term; bias optional (N), only with beta = 0.
/// Order, Throws:  as gemm().
void gemm_sum(TensorView c, std::span<const GemmTerm> terms, float beta = 0,
              ConstTensorView bias = {}, Stream stream = {});

/// All numbers of a matrix in blocks, (rows, columns). For references and tests.
std::vector<float> decoded_matrix(const BlockMatrix& blocks);

/// The oracles: float64 plain loops. f32 or f64 tensors.
void gemm_reference(TensorView c, ConstTensorView a, ConstTensorView b,
                    const GemmOptions& options = {});
void gemm_sum_reference(TensorView c, std::span<const GemmTerm> terms, float beta = 0,
                        ConstTensorView bias = {});

}  // namespace flashloom
