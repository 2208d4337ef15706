#pragma once

#include <cstdint>

#include "flashloom/cuda/debug.cuh"

namespace flashloom::cuda {

/// Named barriers (0 is __syncthreads): `threads` counts those that sync plus those that arrive.
__device__ __forceinline__ void named_barrier_sync(uint32_t id, uint32_t threads,
                                                   WaitPlace place = {}) {
#ifdef FLASHLOOM_CUDA_DEBUG
  debug_barrier_sync(id, threads, place.role, place.barrier);
#else
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

__device__ __forceinline__ void named_barrier_arrive(uint32_t id, uint32_t threads) {
#ifdef FLASHLOOM_CUDA_DEBUG
  debug_barrier_arrive(id, threads);
#else
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
#endif
}

/// Orders this thread's ordinary shared-memory accesses before later ones of the tensor cores and
/// the copy engine.
__device__ __forceinline__ void fence_async_shared() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/// Orders accesses to global memory before later ones of the copy engine.
__device__ __forceinline__ void fence_async_global() {
  asm volatile("fence.proxy.async.global;" ::: "memory");
}

/// Moves registers between warpgroups; every warp of the warpgroup executes it.
template <int kRegisters>
__device__ __forceinline__ void register_limit_raise() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void register_limit_lower() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

/// Ends a basic block once `sum`, which is never negative, is known. The assembler otherwise moves
/// a wait for the tensor cores up across arithmetic that should run beside them.
__device__ __forceinline__ void schedule_fence(float sum) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.lt.f32 p, %0, 0f00000000;\n"
      "@!p bra DONE;\n"
      "nanosleep.u32 1;\n"
      "DONE:\n"
      "}\n" ::"f"(sum)
      : "memory");
}

/// Ends a basic block without waiting for anything; `value` is never 0, which only the caller
/// knows.
__device__ __forceinline__ void block_fence(int32_t value) {
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "setp.ne.s32 p, %0, 0;\n"
      "@p bra DONE;\n"
      "nanosleep.u32 1;\n"
      "DONE:\n"
      "}\n" ::"r"(value)
      : "memory");
}

/// True in one lane of a converged warp.
__device__ __forceinline__ bool elect_one() {
  uint32_t elected;
  asm volatile(
      "{\n"
      ".reg .pred p;\n"
      "elect.sync _|p, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, p;\n"
      "}\n"
      : "=r"(elected));
  return elected != 0;
}

}  // namespace flashloom::cuda
