#pragma once

#include <cuda_runtime.h>

#include <string>

#include "flashloom/core/error.h"

namespace flashloom::cuda {

/// A call of the CUDA run time failed.
class CudaError : public Error {
 public:
  using Error::Error;
};

inline void check(cudaError_t error, const char* call) {
  if (error != cudaSuccess) {
    throw CudaError(std::string(call) + ": " + cudaGetErrorString(error));
  }
}

}  // namespace flashloom::cuda
