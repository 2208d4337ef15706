#pragma once

// Kernels of one stream that overlap ("programmatic dependent launch"). A kernel launched by
// launch_overlapping() may start while the one before it in the stream still runs.

namespace flashloom::cuda {

/// Waits until the kernel before this one has ended and what it wrote can be read; returns at once
/// if this kernel was launched in the ordinary way. Whatever that kernel, or one that it waits for,
/// writes must not be read or overwritten before.
__device__ __forceinline__ void wait_for_earlier_kernel() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

/// Once every block has called this or ended, the next kernel may start where there is room.
__device__ __forceinline__ void let_next_kernel_start() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

}  // namespace flashloom::cuda
