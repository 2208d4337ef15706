#include "flashloom/ops/geglu/geglu.h"

#include <fmt/format.h>

#include "flashloom/core/check.h"
#include "flashloom/ops/geglu/geglu_cpu.h"

namespace flashloom {
namespace {

constexpr std::string_view kForward = "geglu_forward";
constexpr std::string_view kBackward = "geglu_backward";

void check_gate(std::string_view op, const ConstTensorView& gate) {
  check_tensor(op, "gate", gate, {kAnySize, kAnySize}, {DType::f32, DType::bf16});
}

void check_options(std::string_view op, const GegluOptions& options) {
  check(options.approximation == GeluApproximation::none ||
            options.approximation == GeluApproximation::tanh,
        op, "approximation", "none or tanh",
        fmt::format("{}", static_cast<int>(options.approximation)));
}

}  // namespace

void geglu_forward(TensorView out, ConstTensorView gate, ConstTensorView up,
                   const GegluOptions& options, Stream /*stream*/) {
  check_options(kForward, options);
  check_gate(kForward, gate);
  check_like(kForward, "up", up, gate);
  check_like(kForward, "out", out, gate);
  detail::geglu_forward_cpu(out, gate, up, options.approximation);
}

void geglu_backward(TensorView dgate, TensorView dup, TensorView out, ConstTensorView dout,
                    ConstTensorView gate, ConstTensorView up, const GegluOptions& options,
                    Stream /*stream*/) {
  check_options(kBackward, options);
  check_gate(kBackward, gate);
  check_like(kBackward, "up", up, gate);
  check_like(kBackward, "dout", dout, gate);
  check_like(kBackward, "dgate", dgate, gate);
  check_like(kBackward, "dup", dup, gate);
  if (out) {
    check_like(kBackward, "out", out, gate);
  }
  const bool some = gate.size() > 0;
  check(!some || dgate.data != dup.data, kBackward, "dup", "memory other than dgate's", "the same");
  check(!some || (out.data != dgate.data && out.data != dup.data), kBackward, "out",
        "memory other than dgate's and dup's", "the same");
  detail::geglu_backward_cpu(dgate, dup, out, dout, gate, up, options.approximation);
}

}  // namespace flashloom
