#pragma once

#include <cstdint>

#include "flashloom/cuda/debug.cuh"

// Numbers in memory by which blocks of the backward kernels tell each other how far they are.

namespace flashloom::sm90 {

__device__ __forceinline__ int32_t load_acquire(const int32_t* place) {
  int32_t value;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(place) : "memory");
  return value;
}

/// Nobody waits for the answer here. What others wrote before is known behind a fence only.
__device__ __forceinline__ int32_t load_relaxed(const int32_t* place) {
  int32_t value;
  asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(place) : "memory");
  return value;
}

/// As add_release, and acquires what load_relaxed before has told of.
__device__ __forceinline__ void add_acquire_release(int32_t* place) {
  asm volatile(
      "fence.acq_rel.gpu;\n\t"
      "red.relaxed.gpu.global.add.s32 [%0], 1;" ::"l"(place)
      : "memory");
}

__device__ __forceinline__ void add_release(int32_t* place) {
  asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(place) : "memory");
}

/// What `place` held before one was added.
__device__ __forceinline__ int32_t count_acquire_release(int32_t* place) {
  int32_t found;
  asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;"
               : "=r"(found)
               : "l"(place)
               : "memory");
  return found;
}

__device__ __forceinline__ void store_release(int32_t* place, int32_t value) {
  asm volatile("st.release.gpu.global.s32 [%0], %1;" ::"l"(place), "r"(value) : "memory");
}

/// What `place` held; takes `value` if that was 0.
__device__ __forceinline__ int32_t claim(int32_t* place, int32_t value) {
  int32_t found;
  asm volatile("atom.acquire.gpu.global.cas.b32 %0, [%1], 0, %2;"
               : "=r"(found)
               : "l"(place), "r"(value)
               : "memory");
  return found;
}

/// Polls after which a wait is given up: more than 10 s. Lengths that contradict each other could
/// make a turn never come.
inline constexpr int32_t kMostPolls = 1 << 25;

/// Waits until `count` is `value`.
__device__ __forceinline__ void wait_for_count(const int32_t* count, int32_t value,
                                               int32_t* status) {
  const cuda::HangGuard guard;
  int32_t polls = 0;
  while (load_acquire(count) != value) {
    guard.poll({"a thread that adds", "other blocks"}, static_cast<uint32_t>(value));
    if (++polls > kMostPolls) {
      if (status != nullptr) {
        *status = 1;
      }
      break;
    }
  }
}

}  // namespace flashloom::sm90
