#pragma once

#include <cstdint>
#include <initializer_list>

#include "flashloom/ops/attention/attention.h"

// A call on a GPU by shapes and addresses alone, which decide the backend, so that tests of the
// choice need no GPU.

namespace flashloom::attention_test {

inline constexpr Device kGpu = {Device::Kind::cuda, 0};

inline TensorView gpu_tensor(DType dtype, std::initializer_list<int64_t> shape,
                             uintptr_t address = 0) {
  return TensorView(reinterpret_cast<void*>(address), dtype, shape, kGpu);
}

/// Two sequences, 8 heads over 2, 300 queries and keys.
struct GpuCall {
  AttentionInputs inputs;
  AttentionOutputs outputs;
  AttentionSaved saved;
  AttentionGradients gradients;
  AttentionOptions options;

  explicit GpuCall(DType dtype = DType::bf16, int64_t dim = 128) {
    inputs = {gpu_tensor(dtype, {2, 8, 300, dim}), gpu_tensor(dtype, {2, 2, 300, dim}),
              gpu_tensor(dtype, {2, 2, 300, dim})};
    outputs.out = gpu_tensor(dtype, {2, 8, 300, dim});
    outputs.lse = gpu_tensor(DType::f32, {2, 8, 300});
    saved = {.out = outputs.out, .lse = outputs.lse, .dout = outputs.out};
    gradients.dq = gpu_tensor(dtype, {2, 8, 300, dim});
    gradients.dk = gpu_tensor(dtype, {2, 2, 300, dim});
    gradients.dv = gpu_tensor(dtype, {2, 2, 300, dim});
  }
};

}  // namespace flashloom::attention_test
