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

/// Throws if `call` failed; a later cudaGetLastError() is not blamed for it.
inline void check(cudaError_t error, const char* call) {
  if (error != cudaSuccess) {
    (void)cudaGetLastError();
    throw CudaError(std::string(call) + ": " + cudaGetErrorString(error));
  }
}

}  // namespace flashloom::cuda
