#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "flashloom/cuda/error.cuh"

// What the tests of bricks share. Each brick runs on the GPU against the CPU; operands are small
// integers, so that products and sums are exact and a misplaced element shows as a wrong number.

namespace flashloom::cuda {

#define FLASHLOOM_NEEDS_HOPPER()                                                        \
  int flashloom_major = 0;                                                              \
  if (cudaDeviceGetAttribute(&flashloom_major, cudaDevAttrComputeCapabilityMajor, 0) != \
          cudaSuccess ||                                                                \
      flashloom_major != 9) {                                                           \
    GTEST_SKIP() << "no Hopper GPU on this host";                                       \
  }                                                                                     \
  static_assert(true)

template <class T>
class Buffer {
 public:
  explicit Buffer(const std::vector<T>& values) : count_(values.size()) {
    check(cudaMalloc(&data_, count_ * sizeof(T)), "cudaMalloc");
    check(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice), "copy");
  }

  ~Buffer() { cudaFree(data_); }

  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() const { return data_; }

  std::vector<T> read() const {
    check(cudaDeviceSynchronize(), "kernel");
    std::vector<T> values(count_);
    check(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost), "copy");
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t count_;
};

// Integers in [-8, 8], different for neighbours.
template <class T>
std::vector<T> integers(size_t count, uint32_t seed) {
  std::vector<T> values(count);
  for (size_t i = 0; i < count; ++i) {
    const auto mixed = static_cast<uint32_t>(i) * 2654435761u + seed * 40503u;
    values[i] = static_cast<T>(static_cast<float>(static_cast<int>(mixed >> 16) % 17 - 8));
  }
  return values;
}

}  // namespace flashloom::cuda
