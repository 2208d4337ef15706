#pragma once

#include <cuda.h>

#include <cstdint>

#include "flashloom/cuda/error.cuh"
#include "flashloom/cuda/launch.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/cuda/tensor_map.cuh"
#include "flashloom/ops/attention/sm90/problem.cuh"

// How all backward kernels start: the launch with the maps of q, k, v and dout, and what the first
// thread of a block does.

namespace flashloom::sm90 {

struct BackwardMaps {
  CUtensorMap q, k, v, dout;
  CUtensorMap dk, dv;  // 16 rows a box, where they leave through the copy engine
};

/// `columns`: of a panel.
template <class Shape>
BackwardMaps backward_maps(const AttentionInputs& inputs, const ConstTensorView& dout,
                           uint32_t columns = 64) {
  return {cuda::make_tile_map(as_batched(inputs.q), Shape::kQueries, columns),
          cuda::make_tile_map(as_batched(inputs.k), Shape::kKeys, columns),
          cuda::make_tile_map(as_batched(inputs.v), Shape::kKeys, columns),
          cuda::make_tile_map(as_batched(dout), Shape::kQueries, columns),
          {},
          {}};
}

/// A ring of buffers that `copies` arrivals fill and `readers` warps give back.
template <int kStages>
__device__ __forceinline__ void init_ring(uint64_t (&full)[kStages], uint64_t (&empty)[kStages],
                                          uint32_t copies, uint32_t readers) {
#pragma unroll
  for (int i = 0; i < kStages; ++i) {
    cuda::mbarrier_init(&full[i], copies);
    cuda::mbarrier_init(&empty[i], readers);
  }
}

/// One thread; init() sets up the barriers. Then a __syncthreads().
template <class Init>
__device__ __forceinline__ void begin_backward_block(const BackwardMaps& maps, Init&& init) {
  cuda::prefetch_tensor_map(&maps.q);
  cuda::prefetch_tensor_map(&maps.k);
  cuda::prefetch_tensor_map(&maps.v);
  cuda::prefetch_tensor_map(&maps.dout);
  init();
  cuda::mbarrier_init_fence();
  cuda::begin_debug_block();
}

/// `overlaps`: the kernel waits itself for the one of this call before it.
template <class Shape, class Params, class Maps>
void launch_backward_kernel(void (*kernel)(Params, Maps), const char* name, dim3 blocks,
                            const Params& params, const Maps& maps, bool overlaps,
                            cudaStream_t stream) {
  cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   Shape::kSharedBytes),
              "cudaFuncSetAttribute");
  cuda::prepare_debug(stream);
  if (overlaps) {
    cuda::launch_overlapping(kernel, name, blocks, Shape::kThreads, Shape::kSharedBytes, stream,
                             params, maps);
    return;
  }
  kernel<<<blocks, Shape::kThreads, Shape::kSharedBytes, stream>>>(params, maps);
  cuda::check(cudaGetLastError(), name);
}

/// Launches a kernel whose tiles are of Shape::kQueries and Shape::kKeys rows.
template <class Shape, class Params>
void launch_backward_kernel(void (*kernel)(Params, BackwardMaps), const char* name, dim3 blocks,
                            const Params& params, const AttentionInputs& inputs,
                            const ConstTensorView& dout, cudaStream_t stream,
                            bool overlaps = false) {
  launch_backward_kernel<Shape>(kernel, name, blocks, params, backward_maps<Shape>(inputs, dout),
                                overlaps, stream);
}

}  // namespace flashloom::sm90
