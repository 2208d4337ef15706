#pragma once

#include <cuda.h>

#include "flashloom/cuda/ptx/grid.cuh"
#include "flashloom/ops/attention/sm90/backward_consume.cuh"
#include "flashloom/ops/attention/sm90/backward_parts.cuh"
#include "flashloom/ops/attention/sm90/backward_produce.cuh"
#include "flashloom/ops/attention/sm90/backward_results.cuh"
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
  if (threadIdx.x == 0) {
    begin_backward_block(maps, [&] { init_barriers(barriers); });
  }
  const BackwardWork found =
      backward_work_of_block<Shape>(params, static_cast<int32_t>(blockIdx.x));
  if (found.key >= found.sequence.key_rows) {
    if (waits_for_all(params)) {
      wait_for_earlier_kernel();
    }
    if (params.ended != nullptr && threadIdx.x < 2) {
      add_release(params.ended + head_of_work(params, found));
    }
    return;
  }
  // The first tiles, which need nothing of what follows, nor of those that prepare rows.
  BackwardWalk<Shape> walk;
  bool more = false;
  if (threadIdx.x == 0) {
    shared.work() = found;
  }
  if (threadIdx.x < 128 && threadIdx.x % 32 == 0 && found.begin < found.end) {
    if (threadIdx.x == 0) {
      const int32_t batch = params.problem.cu_key != nullptr ? 0 : found.batch;
      const int32_t row = found.sequence.key_first + found.key;
      mbarrier_arrive_expect(&barriers.k_full, Shape::kKeyBytes);
      backward_load<Shape>(shared.k(), &maps.k, &barriers.k_full, Shape::kKeys, row, found.head,
                           batch);
      mbarrier_arrive_expect(&barriers.v_full, Shape::kKeyBytes);
      backward_load<Shape>(shared.v(), &maps.v, &barriers.v_full, Shape::kKeys, row, found.head,
                           batch);
    }
    more = walk.start(params, found);
    if (more && threadIdx.x == 0) {
      constexpr uint32_t kBytes = Shape::kQueryBytes + Shape::kRowBytes;
      const bool entropy = Shape::kAdjusts && params.dentropy != nullptr;
      backward_begin_step<Shape>(params, found, walk, &maps.q, kBytes, shared.q(0),
                                 &barriers.q_full[0], Shape::kLists ? &barriers.steps[0] : nullptr);
      backward_begin_step<Shape>(params, found, walk, &maps.dout,
                                 kBytes + (entropy ? Shape::kRowBytes : 0), shared.dout(0),
                                 &barriers.dout_full[0], nullptr);
    }
  }
  __syncthreads();
  const int32_t warpgroup = __shfl_sync(0xffffffffu, static_cast<int32_t>(threadIdx.x / 128), 0);
  if (warpgroup == 0) {
    register_limit_lower<Shape::kProducerRegisters>();
    const BackwardWork& work = shared.work();
    if (threadIdx.x % 32 == 0) {
      wait_for_rows(params, work);
      if (threadIdx.x == 0) {
        let_next_kernel_start();
      }
    }
    PipelineState<Shape::kStages> place;
    PipelineState<Shape::kSumStages> sum_place;
    if (threadIdx.x >= 64 && threadIdx.x % 32 == 0) {
      if (work.begin < work.end) {
        backward_add<Shape>(params, work, walk, more, shared,
                            static_cast<int32_t>(threadIdx.x / 32) - 2, sum_place);
      }
      if (params.ended != nullptr) {
        bulk_wait<0>();
        add_release(params.ended + head_of_work(params, work));
      }
      if (waits_for_all(params)) {
        wait_for_earlier_kernel();
      }
    } else if (work.begin < work.end) {
      if (threadIdx.x == 0) {
        backward_produce<Shape>(params, work, walk, more, &maps.q, params.lse, nullptr, shared.q(0),
                                shared.lse(0), barriers.q_full, barriers.q_empty,
                                Shape::kLists ? barriers.steps : nullptr, place, true);
      } else if (threadIdx.x == 32) {
        backward_produce<Shape>(params, work, walk, more, &maps.dout, params.delta,
                                Shape::kAdjusts ? params.dentropy : nullptr, shared.dout(0),
                                shared.delta(0), barriers.dout_full, barriers.dout_empty, nullptr,
                                place, true);
      }
    }
  } else {
    register_limit_raise<Shape::kConsumerRegisters>();
    BackwardConsumer<Shape> consumer;
    // At 64 columns registers suffice for what turns need, and shared memory costs 5 %.
    constexpr bool kTurns = Shape::kTurns != BackwardTurns::never;
    constexpr bool kFew = Shape::kLists || (kTurns && !Shape::kExact);
    float dk[Shape::kDim / 2], dv[Shape::kDim / 2];
    if (warpgroup == 2) {
      consumer.pass_turn(1);
    }
    if constexpr (kFew) {
      consumer.run(params, shared.work(), shared, warpgroup - 1, 0, dk, dv, maps);
    } else if constexpr (!Shape::kSends) {
      consumer.run(params, found, shared, warpgroup - 1, 0, dk, dv, maps);
    } else {
      BackwardWork work = found;
      // Registers are short at 64 columns.
      work.begin = shared.work().begin;
      work.sequence.query_length = shared.work().sequence.query_length;
      consumer.run(params, work, shared, warpgroup - 1, 0, dk, dv, maps);
    }
    if (warpgroup == 1) {
      consumer.wait_for_turn(0);
    }
    if constexpr (Shape::kSends) {
      store_results<Shape>(params, maps, shared.work(), warpgroup - 1, shared.k(), shared.v(), dk,
                           dv);
    }
  }
}

}  // namespace flashloom::sm90
