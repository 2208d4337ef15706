#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "flashloom/core/tensor_view.h"
#include "flashloom/cuda/error.cuh"

namespace flashloom::decode_test {

inline bool has_gpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

/// Memory of the GPU, filled with ones (NaN in every float type).
class DeviceMemory {
 public:
  explicit DeviceMemory(int64_t bytes) : bytes_(bytes) {
    cuda::check(cudaMalloc(&data_, static_cast<size_t>(bytes) + 64), "cudaMalloc");
    poison();
  }

  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  ~DeviceMemory() { cudaFree(data_); }

  void poison() {
    cuda::check(cudaMemset(data_, 0xff, static_cast<size_t>(bytes_) + 64), "cudaMemset");
  }

  void* data() const { return data_; }

  std::span<std::byte> span() const {
    return {static_cast<std::byte*>(data_), static_cast<size_t>(bytes_)};
  }

 private:
  void* data_ = nullptr;
  int64_t bytes_;
};

/// A GPU copy of a view's memory, strides included.
class DeviceTensor {
 public:
  explicit DeviceTensor(const ConstTensorView& host) : view_() {
    int64_t elements = host.size() == 0 ? 0 : 1;
    for (int i = 0; elements > 0 && i < host.rank; ++i) {
      elements += (host.shape[i] - 1) * host.strides[i];
    }
    bytes_ = elements * static_cast<int64_t>(dtype_bytes(host.dtype));
    memory_ = std::make_unique<DeviceMemory>(bytes_);
    view_.data = memory_->data();
    view_.dtype = host.dtype;
    view_.device = {Device::Kind::cuda, 0};
    view_.rank = host.rank;
    view_.shape = host.shape;
    view_.strides = host.strides;
  }

  void upload(const ConstTensorView& host) {
    cuda::check(cudaMemcpy(view_.data, host.data, static_cast<size_t>(bytes_), cudaMemcpyDefault),
                "cudaMemcpy");
  }

  void download(const TensorView& host) const {
    cuda::check(cudaMemcpy(host.data, view_.data, static_cast<size_t>(bytes_), cudaMemcpyDefault),
                "cudaMemcpy");
  }

  void poison() { memory_->poison(); }

  const TensorView& view() const { return view_; }

 private:
  TensorView view_;
  int64_t bytes_ = 0;
  std::unique_ptr<DeviceMemory> memory_;
};

}  // namespace flashloom::decode_test
