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

/// Two sequences, 8 heads over 2, as many queries as keys.
struct GpuCall {
  AttentionInputs inputs;
  AttentionOutputs outputs;
  AttentionSaved saved;
  AttentionGradients gradients;
  AttentionOptions options;

  explicit GpuCall(DType dtype = DType::bf16, int64_t dim = 128, int64_t length = 300) {
    inputs = {gpu_tensor(dtype, {2, 8, length, dim}), gpu_tensor(dtype, {2, 2, length, dim}),
              gpu_tensor(dtype, {2, 2, length, dim})};
    outputs.out = gpu_tensor(dtype, {2, 8, length, dim});
    outputs.lse = gpu_tensor(DType::f32, {2, 8, length});
    saved = {.out = outputs.out, .lse = outputs.lse, .dout = outputs.out};
    gradients.dq = gpu_tensor(dtype, {2, 8, length, dim});
    gradients.dk = gpu_tensor(dtype, {2, 2, length, dim});
    gradients.dv = gpu_tensor(dtype, {2, 2, length, dim});
  }
};

}  // namespace flashloom::attention_test
