#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "flashloom/cuda/error.cuh"

namespace flashloom::cuda {

/// Launches a kernel that may start before the one before it in the stream has ended, where that
/// one lets it (ptx/grid.cuh): the kernel waits itself before it touches what the other one writes.
/// Only for kernels that follow another one of the same call.
template <class... Parameters, class... Arguments>
void launch_overlapping(void (*kernel)(Parameters...), const char* name, dim3 blocks, dim3 threads,
                        size_t shared_bytes, cudaStream_t stream, const Arguments&... arguments) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = blocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  check(cudaLaunchKernelEx(&config, kernel, arguments...), name);
}

}  // namespace flashloom::cuda
