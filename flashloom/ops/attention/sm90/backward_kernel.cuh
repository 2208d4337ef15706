#pragma once

#include <cuda.h>

#include "flashloom/ops/attention/sm90/backward_consume.cuh"
#include "flashloom/ops/attention/sm90/backward_produce.cuh"
#include "flashloom/ops/attention/sm90/backward_start.cuh"

// Backward attention on Hopper. A block owns 128 keys of a key-value head and walks the tiles of
// queries that see them, of every query head that reads them; dK and dV stay in registers, dQ is
// added up in f32 in global memory. Everything is computed transposed (keys x queries), so that P
// and dS are A operands straight from registers. docs/kernels/attention.md has the picture.

namespace flashloom::sm90 {

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    attention_backward_kernel(const __grid_constant__ BackwardParams params,
                              const __grid_constant__ BackwardMaps maps) {
  using namespace cuda;
  extern __shared__ __align__(1024) char memory[];
  const BackwardShared<Shape> shared{memory};
  BackwardBarriers<Shape>& barriers = shared.barriers();
  const BackwardWork found = backward_work<Shape>(params, static_cast<int32_t>(blockIdx.x));
  if (found.key >= found.sequence.key_rows) {
    return;
  }
  // Lists and producers that keep turns leave no registers for it.
  constexpr bool kShares = Shape::kTurns != BackwardTurns::never;
  if (threadIdx.x == 0) {
    if constexpr (kShares) {
      shared.work() = found;
    }
    begin_backward_block(maps, [&] {
      mbarrier_init(&barriers.k_full, 1);
      mbarrier_init(&barriers.v_full, 1);
      init_ring(barriers.q_full, barriers.q_empty, 1, 8);
      init_ring(barriers.dout_full, barriers.dout_empty, 1, 8);
      init_ring(barriers.ds_full, barriers.ds_empty, 8, 8);
      init_ring(barriers.sum_full[0], barriers.sum_empty[0], 4, 1);
      init_ring(barriers.sum_full[1], barriers.sum_empty[1], 4, 1);
    });
  }
  __syncthreads();
  const int32_t warpgroup = __shfl_sync(0xffffffffu, static_cast<int32_t>(threadIdx.x / 128), 0);
  if (warpgroup == 0) {
    register_limit_lower<Shape::kProducerRegisters>();
    const BackwardWork& work = kShares ? shared.work() : found;
    if (work.begin < work.end) {
      const int32_t batch = params.problem.cu_key != nullptr ? 0 : work.batch;
      const int32_t row = work.sequence.key_first + work.key;
      if (threadIdx.x == 0) {
        mbarrier_arrive_expect(&barriers.k_full, Shape::kKeyBytes);
        backward_load<Shape>(shared.k(), &maps.k, &barriers.k_full, Shape::kKeys, row, work.head,
                             batch);
        backward_produce<Shape>(params, work, &maps.q, params.lse, nullptr, shared.q(0),
                                shared.lse(0), barriers.q_full, barriers.q_empty,
                                Shape::kLists ? barriers.steps : nullptr);
      } else if (threadIdx.x == 32) {
        mbarrier_arrive_expect(&barriers.v_full, Shape::kKeyBytes);
        backward_load<Shape>(shared.v(), &maps.v, &barriers.v_full, Shape::kKeys, row, work.head,
                             batch);
        backward_produce<Shape>(params, work, &maps.dout, params.delta,
                                Shape::kAdjusts ? params.dentropy : nullptr, shared.dout(0),
                                shared.delta(0), barriers.dout_full, barriers.dout_empty, nullptr);
      } else if (threadIdx.x % 32 == 0) {
        backward_add<Shape>(params, work, shared, static_cast<int32_t>(threadIdx.x / 32) - 2);
      }
    }
  } else {
    register_limit_raise<Shape::kConsumerRegisters>();
    BackwardConsumer<Shape> consumer;
    // At 64 columns registers suffice for what turns need, and shared memory costs 5 %.
    constexpr bool kFew = Shape::kLists || (kShares && !Shape::kExact);
    consumer.run(params, kFew ? shared.work() : found, shared, warpgroup - 1);
  }
}

}  // namespace flashloom::sm90
