#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "flashloom/cuda/debug.cuh"
#include "flashloom/cuda/error.cuh"
#include "flashloom/cuda/launch.cuh"

// The kernels beside the main backward kernel: a block a multiprocessor, full of warps each of
// which fetches for itself.

namespace flashloom::sm90 {

/// Launches `blocks` blocks of Shape::kWarps warps and Shape::kSharedBytes. The kernel waits itself
/// for the one before it.
template <class Shape, class... Parameters, class... Arguments>
void launch_warps(void (*kernel)(Parameters...), const char* name, int32_t blocks,
                  cudaStream_t stream, const Arguments&... arguments) {
  cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   Shape::kSharedBytes),
              "cudaFuncSetAttribute");
  cuda::prepare_debug(stream);
  cuda::launch_overlapping(kernel, name, static_cast<uint32_t>(blocks), Shape::kWarps * 32,
                           Shape::kSharedBytes, stream, arguments...);
}

}  // namespace flashloom::sm90
