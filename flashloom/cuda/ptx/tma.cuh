#pragma once

#include <cuda.h>

#include <cstdint>

#include "flashloom/cuda/ptx/mbarrier.cuh"

namespace flashloom::cuda {

/// L2 hints of the copy engine, in the encoding that createpolicy gives for whole accesses.
inline constexpr uint64_t kEvictNormal = 0x1000000000000000ull;
inline constexpr uint64_t kEvictFirst = 0x12f0000000000000ull;
inline constexpr uint64_t kEvictLast = 0x14f0000000000000ull;

__device__ __forceinline__ void prefetch_tensor_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(reinterpret_cast<uint64_t>(map)) : "memory");
}

/// Copies the box at (c0 = element of a row, c1 = row, c2, c3) to shared memory; its bytes count
/// on `barrier`. Places outside the tensor are filled with zeros and count as well.
__device__ __forceinline__ void tma_load_4d(void* shared, const CUtensorMap* map, uint64_t* barrier,
                                            int32_t c0, int32_t c1, int32_t c2, int32_t c3,
                                            uint64_t hint = kEvictNormal) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(shared_address(shared)),
      "l"(reinterpret_cast<uint64_t>(map)), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2),
      "r"(c3), "l"(hint)
      : "memory");
}

/// Copies shared memory to the box at (c0 = element of a row, c1 = row, c2, c3); places outside the
/// tensor are left out. Complete after bulk_commit() and bulk_wait(); the shared memory is free
/// after bulk_wait_read().
__device__ __forceinline__ void tma_store_4d(const CUtensorMap* map, uint32_t shared, int32_t c0,
                                             int32_t c1, int32_t c2, int32_t c3) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4, %5}], [%1];" ::
          "l"(reinterpret_cast<uint64_t>(map)),
      "r"(shared), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
      : "memory");
}

/// The same with a hint for the L2 cache.
__device__ __forceinline__ void tma_store_4d(const CUtensorMap* map, uint32_t shared, int32_t c0,
                                             int32_t c1, int32_t c2, int32_t c3, uint64_t hint) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group.L2::cache_hint "
      "[%0, {%2, %3, %4, %5}], [%1], %6;" ::"l"(reinterpret_cast<uint64_t>(map)),
      "r"(shared), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "l"(hint)
      : "memory");
}

/// Copies `bytes` (a multiple of 16, 16-byte aligned) to shared memory.
__device__ __forceinline__ void bulk_load(void* shared, const void* global, uint32_t bytes,
                                          uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(shared)),
      "l"(reinterpret_cast<uint64_t>(global)), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

/// Copies `bytes` (a multiple of 16, 16-byte aligned) from shared to global memory; complete after
/// bulk_wait().
__device__ __forceinline__ void bulk_store(void* global, const void* shared, uint32_t bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(
                   reinterpret_cast<uint64_t>(global)),
               "r"(shared_address(shared)), "r"(bytes)
               : "memory");
}

/// Adds `bytes` of f32 from shared to global memory; complete after bulk_wait().
__device__ __forceinline__ void bulk_reduce_add_f32(void* global, const void* shared,
                                                    uint32_t bytes) {
  asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(
                   reinterpret_cast<uint64_t>(global)),
               "r"(shared_address(shared)), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void bulk_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

/// Waits until at most kPending groups still read their shared memory.
template <int kPending>
__device__ __forceinline__ void bulk_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

template <int kPending>
__device__ __forceinline__ void bulk_wait() {
  asm volatile("cp.async.bulk.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace flashloom::cuda
