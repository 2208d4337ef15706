#pragma once

#include <cstdint>

namespace flashloom::cuda {

/// Copies 16 bytes to shared memory past the L1 cache and the registers. Without `exists` nothing
/// is read, whatever `source` is, and the 16 bytes become zero.
__device__ __forceinline__ void cp_async_16(uint32_t target, const void* source, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source),
               "r"(exists ? 16 : 0)
               : "memory");
}

/// The same; the L2 cache fetches the whole 128-byte line. For rows whose lines others share.
__device__ __forceinline__ void cp_async_16_of_line(uint32_t target, const void* source,
                                                    bool exists) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(target), "l"(source),
               "r"(exists ? 16 : 0)
               : "memory");
}

/// Ends a group of copies of this thread.
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

/// Waits until at most kPending of this thread's groups, the youngest ones, are under way. Other
/// threads' copies need a barrier after it.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace flashloom::cuda
