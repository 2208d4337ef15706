#pragma once

#include <cstdint>

#include "flashloom/cuda/ptx/grid.cuh"
#include "flashloom/ops/attention/sm90/backward_consume.cuh"
#include "flashloom/ops/attention/sm90/backward_produce.cuh"
#include "flashloom/ops/attention/sm90/backward_results.cuh"
#include "flashloom/ops/attention/sm90/backward_start.cuh"

// The kernel of backward_kernel.cuh by blocks that stay, one a multiprocessor: tiles of keys are
// taken as they come, in the order of blocks there, and what the next one needs is fetched while
// the last steps of one run and its results leave. The first one is found here, the others, and of
// packed sequences all (backward_works.cuh), by the kernel before.

namespace flashloom::sm90 {

/// Fetches K or V of a tile of keys; `parity` of its turn.
template <class Shape>
__device__ __forceinline__ void backward_load_keys(const BackwardParams& params,
                                                   const BackwardWork& work, const CUtensorMap* map,
                                                   char* tile, uint64_t* full, uint64_t* empty,
                                                   uint32_t parity) {
  cuda::mbarrier_wait(empty, parity ^ 1, {"a producer", "k_empty or v_empty"});
  cuda::mbarrier_arrive_expect(full, Shape::kKeyBytes);
  backward_load<Shape>(tile, map, full, Shape::kKeys, work.sequence.key_first + work.key, work.head,
                       params.problem.cu_key != nullptr ? 0 : work.batch);
}

/// The first step of a walk, and the keys: of a block's first tile, whose place is free, before the
/// rows are waited for; of others behind the step, since their place is not free before the
/// results of the tile before have left. Leaves the walk at its second step.
template <class Shape, class LoadKeys>
__device__ __forceinline__ void backward_begin_walk(
    const BackwardParams& params, const BackwardWork& work, BackwardWalk<Shape>& walk, bool& more,
    const CUtensorMap* map, const float* rows, char* tiles, float* row_tiles, uint64_t* full,
    uint64_t* empty, cuda::PipelineState<Shape::kStages>& place, bool first_tile,
    LoadKeys&& load_keys) {
  if (more) {
    cuda::mbarrier_wait(&empty[place.stage], place.parity ^ 1,
                        {"a producer", "q_empty or dout_empty"});
    backward_begin_step<Shape>(params, work, walk, map, Shape::kQueryBytes + Shape::kRowBytes,
                               tiles + place.stage * Shape::kQueryBytes, &full[place.stage],
                               nullptr);
  }
  if (first_tile) {
    load_keys();
  }
  wait_for_rows(params, work);
  if (more) {
    backward_load_rows<Shape>(params, work, walk, rows, row_tiles, &full[place.stage], place.stage);
    place.advance();
    more = walk.advance(params, work);
  }
  if (!first_tile) {
    load_keys();
  }
}

/// The n-th tile of keys that a block takes, once it is known; behind the last one, a negative key.
template <class Shape>
__device__ __forceinline__ const BackwardWork& wait_for_work(const BackwardShared<Shape>& shared,
                                                             uint32_t n, const char* role) {
  cuda::mbarrier_wait(&shared.barriers().work_full[n % 2], n / 2 % 2, {role, "work_full"});
  return shared.work(n % 2);
}

/// The first thread of a block that stays: takes tiles of keys, fetches K, streams q and lse. The
/// first tile is there.
template <class Shape>
__device__ __forceinline__ void backward_lead(const BackwardParams& params,
                                              const BackwardMaps& maps,
                                              const BackwardShared<Shape>& shared) {
  using namespace cuda;
  BackwardBarriers<Shape>& barriers = shared.barriers();
  PipelineState<Shape::kStages> place;
  for (uint32_t n = 0;; ++n) {
    const BackwardWork& work = wait_for_work(shared, n, "a producer");
    if (work.key < 0) {
      break;
    }
    auto load_keys = [&] {
      backward_load_keys<Shape>(params, work, &maps.k, shared.k(), &barriers.k_full,
                                &barriers.k_empty, n % 2);
    };
    BackwardWalk<Shape> walk;
    bool more = walk.start(params, work);
    backward_begin_walk<Shape>(params, work, walk, more, &maps.q, params.lse, shared.q(0),
                               shared.lse(0), barriers.q_full, barriers.q_empty, place, n == 0,
                               load_keys);
    let_next_kernel_start();
    backward_produce<Shape>(params, work, walk, more, &maps.q, params.lse, nullptr, shared.q(0),
                            shared.lse(0), barriers.q_full, barriers.q_empty, nullptr, place,
                            false);
    const auto index = atomicAdd(params.next, 1);
    mbarrier_wait(&barriers.work_empty[(n + 1) % 2], (n + 1) / 2 % 2 ^ 1,
                  {"a producer", "work_empty"});
    uint64_t* full = &barriers.work_full[(n + 1) % 2];
    if (index < params.work_count) {
      mbarrier_arrive_expect(full, sizeof(BackwardWork));
      bulk_load(&shared.work((n + 1) % 2), params.works + index, sizeof(BackwardWork), full);
    } else {
      shared.work((n + 1) % 2).key = -1;
      mbarrier_arrive(full);
    }
  }
}

/// The first thread of the second warp: fetches V, streams dout and delta.
template <class Shape>
__device__ __forceinline__ void backward_follow(const BackwardParams& params,
                                                const BackwardMaps& maps,
                                                const BackwardShared<Shape>& shared) {
  using namespace cuda;
  BackwardBarriers<Shape>& barriers = shared.barriers();
  PipelineState<Shape::kStages> place;
  for (uint32_t n = 0;; ++n) {
    const BackwardWork& work = wait_for_work(shared, n, "a producer");
    if (work.key < 0) {
      break;
    }
    auto load_values = [&] {
      backward_load_keys<Shape>(params, work, &maps.v, shared.v(), &barriers.v_full,
                                &barriers.v_empty, n % 2);
    };
    BackwardWalk<Shape> walk;
    bool more = walk.start(params, work);
    backward_begin_walk<Shape>(params, work, walk, more, &maps.dout, params.delta, shared.dout(0),
                               shared.delta(0), barriers.dout_full, barriers.dout_empty, place,
                               n == 0, load_values);
    backward_produce<Shape>(params, work, walk, more, &maps.dout, params.delta, nullptr,
                            shared.dout(0), shared.delta(0), barriers.dout_full,
                            barriers.dout_empty, nullptr, place, false);
    mbarrier_arrive(&barriers.work_empty[n % 2]);
  }
}

/// The first threads of the other warps add up dQ, one a consumer warpgroup.
template <class Shape>
__device__ __forceinline__ void backward_add_all(const BackwardParams& params,
                                                 const BackwardShared<Shape>& shared,
                                                 int32_t group) {
  using namespace cuda;
  BackwardBarriers<Shape>& barriers = shared.barriers();
  PipelineState<Shape::kSumStages> place;
  for (uint32_t n = 0;; ++n) {
    const BackwardWork& work = wait_for_work(shared, n, "a producer");
    if (work.key < 0) {
      break;
    }
    wait_for_rows(params, work);
    BackwardWalk<Shape> walk;
    const bool more = walk.start(params, work);
    backward_add<Shape>(params, work, walk, more, shared, group, place);
    if (params.ended != nullptr) {
      bulk_wait<0>();
      add_release(params.ended + head_of_work(params, work));
    }
    mbarrier_arrive(&barriers.work_empty[compute_here(n) % 2]);
  }
  if (waits_for_all(params)) {
    wait_for_earlier_kernel();
  }
}

/// Consumer warpgroup 1 or 2: 64 keys of tile after tile.
template <class Shape>
__device__ __forceinline__ void backward_consume_all(const BackwardParams& params,
                                                     const BackwardMaps& maps,
                                                     const BackwardShared<Shape>& shared,
                                                     int32_t warpgroup) {
  using namespace cuda;
  BackwardBarriers<Shape>& barriers = shared.barriers();
  BackwardConsumer<Shape> consumer;
  float dk[Shape::kDim / 2], dv[Shape::kDim / 2];
  if (warpgroup == 2) {
    consumer.pass_turn(1);
  }
  for (uint32_t n = 0;; ++n) {
    // Read where it is needed: registers are short.
    const BackwardWork& work = wait_for_work(shared, n, "a consumer");
    if (work.key < 0) {
      break;
    }
    consumer.run(params, work, shared, warpgroup - 1, n % 2, dk, dv, maps);
    if constexpr (Shape::kSends) {
      char* room = consumer.room_for_results(shared);
      store_results<Shape>(params, maps, work, warpgroup - 1, room, room + Shape::kKeyBytes, dk,
                           dv);
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      mbarrier_arrive(&barriers.work_empty[n % 2]);
    }
  }
  consumer.take_room_back();
  if (warpgroup == 1) {
    consumer.wait_for_turn(0);
  }
}

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    attention_backward_staying_kernel(const __grid_constant__ BackwardParams params,
                                      const __grid_constant__ BackwardMaps maps) {
  using namespace cuda;
  extern __shared__ __align__(1024) char memory[];
  const BackwardShared<Shape> shared{memory};
  BackwardBarriers<Shape>& barriers = shared.barriers();
  if (threadIdx.x == 0) {
    begin_backward_block(maps, [&] { init_barriers(barriers); });
  }
  if (params.problem.cu_key == nullptr) {
    const BackwardWork found = backward_work<Shape>(params, static_cast<int32_t>(blockIdx.x));
    if (threadIdx.x == 0) {
      shared.work(0) = found;
      mbarrier_arrive(&barriers.work_full[0]);
    }
  } else if (threadIdx.x == 0) {
    if (params.ready == nullptr) {  // else the kernel before has waited for the one of the works
      wait_for_earlier_kernel();
    }
    mbarrier_arrive_expect(&barriers.work_full[0], sizeof(BackwardWork));
    bulk_load(&shared.work(0), params.works + blockIdx.x, sizeof(BackwardWork),
              &barriers.work_full[0]);
  }
  __syncthreads();
  const int32_t warpgroup = __shfl_sync(0xffffffffu, static_cast<int32_t>(threadIdx.x / 128), 0);
  if (warpgroup == 0) {
    register_limit_lower<Shape::kProducerRegisters>();
    if (threadIdx.x == 0) {
      backward_lead<Shape>(params, maps, shared);
    } else if (threadIdx.x == 32) {
      backward_follow<Shape>(params, maps, shared);
    } else if (threadIdx.x % 32 == 0) {
      backward_add_all<Shape>(params, shared, static_cast<int32_t>(threadIdx.x / 32) - 2);
    }
  } else {
    register_limit_raise<Shape::kConsumerRegisters>();
    backward_consume_all<Shape>(params, maps, shared, warpgroup);
  }
}

}  // namespace flashloom::sm90
