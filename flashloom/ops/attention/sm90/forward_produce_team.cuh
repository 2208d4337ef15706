#pragma once

#include "flashloom/ops/attention/sm90/forward_produce.cuh"

// Where two teams share a block there is one producer warp for both keys and values of a team.

namespace flashloom::sm90 {

/// Streams the tiles of keys and values that the queries see, from the last to the first. Consumers
/// compute the next scores, be it of the same tile of queries or of the next, before they sum these
/// values: so keys are loaded one tile ahead of values, and waits for room come in the order in
/// which room is made.
template <class Shape>
__device__ __forceinline__ void forward_produce_stream(const ForwardParams& params,
                                                       const CUtensorMap* k_map,
                                                       const CUtensorMap* v_map, char* k_tiles,
                                                       char* v_tiles,
                                                       ForwardBarriers<Shape>& barriers) {
  using namespace cuda;
  constexpr const char* kRole = "the producer of keys and values";
  const bool leader = threadIdx.x % 32 == 0;
  PipelineState<kForwardSlots> slot;
  PipelineState<Shape::kStages> k_place, v_place;
  uint32_t border_parity = 0;  // one bit a stage

  struct {
    int32_t row, head, batch;
    int32_t clean;  // rows that hold values; the others are cleared
  } values = {};

  bool owed = false;  // these values have not been loaded
  const auto load_values = [&] {
    mbarrier_wait(&barriers.v_empty[v_place.stage], v_place.parity ^ 1, {kRole, "v_empty"});
    __syncwarp();  // all lanes have seen the phase that the copy lets end
    char* tile = v_tiles + v_place.stage * Shape::kTileBytes;
    const bool border = values.clean < Shape::kKeys;
    uint64_t* full = &barriers.v_full[v_place.stage];
    if (leader) {
      uint64_t* barrier = border ? &barriers.v_border[v_place.stage] : full;
      mbarrier_arrive_expect(barrier, Shape::kTileBytes);
#pragma unroll
      for (int p = 0; p < Shape::kPanels; ++p) {
        tma_load_4d(tile + p * panel_bytes(Shape::kKeys), v_map, barrier, p * 64, values.row,
                    values.head, values.batch, kEvictLast);
      }
    }
    if (border) {
      mbarrier_wait(&barriers.v_border[v_place.stage], border_parity >> v_place.stage & 1,
                    {kRole, "v_border"});
      border_parity ^= 1u << v_place.stage;
      clear_rows<Shape>(tile, values.clean);
      fence_async_shared();
      __syncwarp();
      if (leader) {
        mbarrier_arrive(full);
      }
    }
    v_place.advance();
    owed = false;
  };
  for (;; slot.advance()) {
    // The last values need not wait for the next tile of queries.
    const int32_t told = mbarrier_test(&barriers.work_full[slot.stage], slot.parity) ? 1 : 0;
    if (owed && __shfl_sync(0xffffffffu, told, 0) == 0) {
      load_values();
    }
    mbarrier_wait(&barriers.work_full[slot.stage], slot.parity, {kRole, "work_full"});
    const ForwardWork& work = barriers.work[slot.stage];
    if (work.range.begin < 0) {
      break;
    }
    const int32_t first = work.sequence.key_first;
    const int32_t length = work.sequence.key_length;
    // Rows behind the end that hold something: other sequences, or padding.
    const bool dirty = first + length < params.tensor_keys;
    const int32_t head = work.tile.head / params.problem.heads_per_key;
    const int32_t batch = params.problem.cu_key != nullptr ? 0 : work.tile.batch;
    KeyWalk<Shape> walk(params, work);
    ForwardStep step = {-1, -1, 1, -1};
    bool more = walk.next(params, work, step);
    bool drawn = false;
    do {
      ForwardStep following = {-1, -1, 0, -1};
      more = more && walk.next(params, work, following);
      const int32_t key = max(step.tile, 0) * Shape::kKeys;
      mbarrier_wait(&barriers.k_empty[k_place.stage], k_place.parity ^ 1, {kRole, "k_empty"});
      __syncwarp();  // as above
      if (leader) {
        barriers.steps[k_place.stage] = told_step<Shape>(params, work, step, following, more);
        uint64_t* barrier = &barriers.k_full[k_place.stage];
        mbarrier_arrive_expect(barrier, Shape::kTileBytes);
        char* tile = k_tiles + k_place.stage * Shape::kTileBytes;
#pragma unroll
        for (int p = 0; p < Shape::kPanels; ++p) {
          tma_load_4d(tile + p * panel_bytes(Shape::kKeys), k_map, barrier, p * 64, first + key,
                      head, batch, kEvictLast);
        }
        if (!drawn && (!more || walk.left() < params.draw_at)) {
          mbarrier_arrive(&barriers.draw);
          drawn = true;
        }
      }
      k_place.advance();
      if (owed) {
        load_values();
      }
      values = {first + key, head, batch,
                dirty ? min(max(length - key, 0), Shape::kKeys) : Shape::kKeys};
      owed = true;
      step = following;
    } while (more);
  }
  if (owed) {
    load_values();
  }
}

}  // namespace flashloom::sm90
