#include "flashloom/ops/rope/rope.h"

#include "flashloom/core/check.h"
#include "flashloom/ops/rope/rope_cpu.h"

namespace flashloom {
namespace {

constexpr std::string_view kForward = "rope_forward";
constexpr std::string_view kBackward = "rope_backward";

void check_heads(std::string_view op, std::string_view argument, const ConstTensorView& x,
                 const ConstTensorView& query) {
  check_shape(op, argument, x, {query.shape[0], kAnySize, query.shape[2]});
  check_dtype(op, argument, x, {query.dtype});
  check_last_contiguous(op, argument, x);
  check_cpu(op, argument, x);
}

void check_common(std::string_view op, std::string_view query_name, const ConstTensorView& query,
                  const ConstTensorView& positions, const ConstTensorView& frequencies) {
  check_shape(op, query_name, query, {kAnySize, kAnySize, kAnySize});
  check_dtype(op, query_name, query, {DType::f32, DType::bf16});
  check(query.shape[2] % 2 == 0, op, query_name, "an even head dimension", describe(query));
  check_heads(op, query_name, query, query);
  check_shape(op, "positions", positions, {query.shape[0]});
  check_dtype(op, "positions", positions, {DType::i32});
  check_contiguous(op, "positions", positions);
  check_cpu(op, "positions", positions);
  check_shape(op, "frequencies", frequencies, {query.shape[2] / 2});
  check_dtype(op, "frequencies", frequencies, {DType::f32});
  check_contiguous(op, "frequencies", frequencies);
  check_cpu(op, "frequencies", frequencies);
}

// A bias or its gradient, for heads `x` that must be there.
void check_bias(std::string_view op, std::string_view argument, const ConstTensorView& bias,
                const ConstTensorView& x, std::initializer_list<DType> dtypes) {
  if (!bias) {
    return;
  }
  check(static_cast<bool>(x), op, argument, "nothing, as its heads are absent", describe(bias));
  check_shape(op, argument, bias, {x.shape[1] * x.shape[2]});
  check_dtype(op, argument, bias, dtypes);
  check_contiguous(op, argument, bias);
  check_cpu(op, argument, bias);
}

}  // namespace

void rope_forward(TensorView q, TensorView k, TensorView v, ConstTensorView positions,
                  ConstTensorView frequencies, const RopeBias& bias, Stream /*stream*/) {
  check_common(kForward, "q", q, positions, frequencies);
  if (k) {
    check_heads(kForward, "k", k, q);
  }
  if (v) {
    check_heads(kForward, "v", v, q);
  }
  check_bias(kForward, "bias.q", bias.q, q, {DType::f32, DType::bf16});
  check_bias(kForward, "bias.k", bias.k, k, {DType::f32, DType::bf16});
  check_bias(kForward, "bias.v", bias.v, v, {DType::f32, DType::bf16});
  detail::rope_forward_cpu(q, k, v, positions, frequencies, bias);
}

void rope_backward(TensorView dq, TensorView dk, ConstTensorView dv, ConstTensorView positions,
                   ConstTensorView frequencies, const RopeBiasGradients& dbias, Stream /*stream*/) {
  check_common(kBackward, "dq", dq, positions, frequencies);
  if (dk) {
    check_heads(kBackward, "dk", dk, dq);
  }
  if (dv) {
    check_heads(kBackward, "dv", dv, dq);
  }
  check_bias(kBackward, "dbias.q", dbias.q, dq, {DType::f32});
  check_bias(kBackward, "dbias.k", dbias.k, dk, {DType::f32});
  check_bias(kBackward, "dbias.v", dbias.v, dv, {DType::f32});
  detail::rope_backward_cpu(dq, dk, dv, positions, frequencies, dbias);
}

}  // namespace flashloom
