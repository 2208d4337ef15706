#pragma once

#include "flashloom/ops/attention/decode/decode_work.cuh"

namespace flashloom::decode {

/// The counter of a unit of the line.
__device__ __forceinline__ unsigned long long* unit_counter(const Params& params,
                                                            const Unit& unit) {
  return params.counters +
         (int64_t{unit.sequence} * params.source.key_heads + unit.key_head) * params.row_tiles +
         unit.row_tile;
}

// A counter of arrivals: the launch's number above a count of 16 bits. A counter without this
// launch's number is one that nobody has begun, so the workspace needs no clearing (a launch of its
// own, longer than a small decode takes): memory that a caller hands in carries a random 48-bit
// number by chance only, and a replayed graph finds what the launch before it left, 0.

/// Begins a count; one thread of every block does before it arrives. Each step is a trip to the
/// memory that the thread need not wait for.
struct CountStart {
  unsigned long long* counter;  // null for threads and pieces without one
  unsigned long long seen = 0;

  __device__ __forceinline__ explicit CountStart(unsigned long long* begun) : counter(begun) {}

  __device__ __forceinline__ void look() {
    if (counter != nullptr) {
      seen = *static_cast<volatile unsigned long long*>(counter);
    }
  }

  /// Between the look and this only another block can have changed the counter, which has begun it.
  __device__ __forceinline__ void begin(unsigned long long nonce) const {
    if (counter != nullptr && (seen >> 16) != nonce) {
      atomicCAS(counter, seen, nonce << 16);
    }
  }
};

}  // namespace flashloom::decode
