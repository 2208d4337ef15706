#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>

#include "flashloom/cuda/error.cuh"

// What a debug build (CMake option FLASHLOOM_CUDA_DEBUG) does at every wait and arrival of device
// code. In other builds all of it compiles to nothing.
//
//   A wait of more than 2 s prints who waits for what and ends the kernel with a trap.
//   With a seed, warps sleep at random before they wait or arrive: an order of events that only
//   luck kept shows as other bits.

namespace flashloom::cuda {

/// Who waits, and for what.
struct WaitPlace {
  const char* role = "a thread";
  const char* barrier = "a barrier";
};

#ifdef FLASHLOOM_CUDA_DEBUG

inline constexpr bool kDebug = true;

/// 0: no delays. Read by the next launches.
inline uint64_t delay_seed = 0;

inline constexpr uint64_t kHangNanoseconds = 2'000'000'000;
inline constexpr uint32_t kLongestDelay = 20'000;  // ns; a step of the forward kernel takes 1,000
inline constexpr uint32_t kDelayShare = 8;         // one place of so many sleeps

/// Of a block. Named barriers cannot be polled, so they are counters here.
struct DebugBlock {
  uint32_t arrived[16];
  uint32_t generation[16];
  uint32_t steps[32];  // of each warp
};

// More than can be resident at a time, so no two blocks share one. Each file has its own.
inline constexpr uint32_t kDebugBlocks = 1 << 14;
static __device__ DebugBlock debug_blocks[kDebugBlocks];
static __device__ uint64_t debug_seed;

__device__ __forceinline__ uint32_t linear_block() {
  return blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
}

__device__ __forceinline__ DebugBlock& debug_block() {
  return debug_blocks[linear_block() % kDebugBlocks];
}

/// On the host, before each launch.
[[maybe_unused]] static void prepare_debug(cudaStream_t stream) {
  check(cudaMemcpyToSymbolAsync(debug_seed, &delay_seed, sizeof(delay_seed), 0,
                                cudaMemcpyHostToDevice, stream),
        "cudaMemcpyToSymbolAsync");
}

/// One thread of a block calls it before the first __syncthreads().
__device__ __forceinline__ void begin_debug_block() {
  for (uint32_t i = 0; i < 16; ++i) {
    debug_block().arrived[i] = 0;
  }
}

/// Sleeps or not, by a hash of seed, block, warp and how often the warp has been here.
static __device__ __noinline__ void random_delay() {
  const uint64_t seed = *static_cast<volatile uint64_t*>(&debug_seed);
  if (seed == 0) {
    return;
  }
  const uint32_t active = __activemask();
  const int leader = __ffs(static_cast<int>(active)) - 1;
  uint32_t& steps = debug_block().steps[threadIdx.x / 32];
  uint32_t step = 0;
  if (static_cast<int>(threadIdx.x % 32) == leader) {
    step = steps++;
  }
  step = __shfl_sync(active, step, leader);
  uint64_t x = seed * 0x9e3779b97f4a7c15u ^
               (uint64_t{linear_block()} << 32 | uint64_t{threadIdx.x / 32} << 24 ^ step);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;  // splitmix64
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  x ^= x >> 31;
  if (x % kDelayShare == 0) {
    __nanosleep(static_cast<uint32_t>(x >> 32) % kLongestDelay);
  }
}

static __device__ __noinline__ void report_hang(const char* role, const char* barrier,
                                                uint32_t phase) {
  printf(
      "flashloom: %s has waited for %s, phase %u, for more than 2 s; block (%u, %u, %u), thread "
      "%u\n",
      role, barrier, phase, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x);
  __trap();
}

/// The time that a loop may take.
class HangGuard {
 public:
  __device__ __forceinline__ HangGuard() : start_(now()) {}

  __device__ __forceinline__ void poll(WaitPlace place, uint32_t phase) const {
    if (now() - start_ > kHangNanoseconds) {
      report_hang(place.role, place.barrier, phase);
    }
  }

 private:
  static __device__ __forceinline__ uint64_t now() {
    uint64_t time;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(time));
    return time;
  }

  uint64_t start_;
};

/// A warp's arrival; returns the phase that it arrived in.
static __device__ __noinline__ uint32_t debug_barrier_arrive(uint32_t id, uint32_t threads) {
  random_delay();
  DebugBlock& block = debug_block();
  uint32_t phase = 0;
  __threadfence();
  __syncwarp();
  if (threadIdx.x % 32 == 0) {
    phase = *static_cast<volatile uint32_t*>(&block.generation[id]);
    __threadfence();
    if (atomicAdd(&block.arrived[id], 32) + 32 == threads) {
      atomicSub(&block.arrived[id], threads);
      __threadfence();
      atomicAdd(&block.generation[id], 1);
    }
  }
  return __shfl_sync(0xffffffffu, phase, 0);
}

static __device__ __noinline__ void debug_barrier_sync(uint32_t id, uint32_t threads,
                                                       const char* role, const char* barrier) {
  const uint32_t phase = debug_barrier_arrive(id, threads);
  const HangGuard guard;
  while (*static_cast<volatile uint32_t*>(&debug_block().generation[id]) == phase) {
    guard.poll({role, barrier}, phase);
  }
  __threadfence();
  __syncwarp();
  random_delay();
}

#else

inline constexpr bool kDebug = false;

inline void prepare_debug(cudaStream_t /*stream*/) {}

__device__ __forceinline__ void begin_debug_block() {}

__device__ __forceinline__ void random_delay() {}

class HangGuard {
 public:
  __device__ __forceinline__ void poll(WaitPlace /*place*/, uint32_t /*phase*/) const {}
};

#endif

}  // namespace flashloom::cuda
