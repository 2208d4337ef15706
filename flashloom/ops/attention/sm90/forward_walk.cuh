#pragma once

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/ops/attention/sm90/forward_rows.cuh"
#include "flashloom/ops/attention/sm90/forward_shape.cuh"

namespace flashloom::sm90 {

/// Where a consumer warpgroup is: its places in the rings of queries, keys, values and work, and
/// its turn to issue products.
///
/// One lane of a warp gives a buffer back for all, which may end the phase that the others wait
/// for: the warp must have converged behind the wait, by a product, a shuffle or `__syncwarp()`.
template <class Shape>
struct ForwardWalk {
  using State = ForwardState;

  // With one buffer of queries the next tile's cannot arrive beside the last scores of this one.
  static constexpr bool kChained = Shape::kQStages > 1 || Shape::kListed;

  // Four warpgroups that walk lists spill where they compute their rows anew.
  static constexpr bool kKeepsRow = Shape::kBlockGroups == 4 && Shape::kListed;

  ForwardBarriers<Shape>& barriers;
  int32_t group;
  uint32_t lane;
  cuda::PipelineState<Shape::kQStages> q_place = {};
  cuda::PipelineState<Shape::kStages> k_place = {}, v_place = {};
  State state = State::done;
  uint32_t slot = kForwardSlots - 1;
  int32_t tile = 0, begin = 0;   // tile of keys of the last scores; the first of this warpgroup
  int32_t partial = -1;          // where bits of its last scores' tile start, or -1
  int32_t next = -1;             // the tile behind it, see ForwardStep
  bool last = false;             // it ends a tile of queries
  int32_t open = 0, closed = 0;  // tiles before `open` and from `closed` on hide something
  int32_t swap = INT32_MAX;      // see swapped_tile(); `tile` and `begin` count steps
  int32_t lead = 0, first = 0;   // see led_tile()
  int32_t plain = 0;             // steps from here on may hide something
  int32_t skip = 0;              // tiles of values to skip when this one's have been summed
  int32_t behind = 0;            // tiles to skip behind the leading one
  int32_t kept_row = 0;          // own_row(), with kKeepsRow

  /// The first of this warp's rows within a tile of queries.
  __device__ __forceinline__ int32_t warp_row() const {
    return group * 64 + static_cast<int32_t>(threadIdx.x % 128 / 32 * 16);
  }

  /// The first of this thread's.
  __device__ __forceinline__ int32_t own_row() const {
    return kKeepsRow ? kept_row : warp_row() + static_cast<int32_t>(lane / 4);
  }

  __device__ __forceinline__ const ForwardWork& work() const { return barriers.work[slot]; }

  /// The tile whose values are summed: with chained tiles the work has moved on by then.
  __device__ __forceinline__ uint32_t done_slot() const {
    return kChained ? (slot + kForwardSlots - 1) % kForwardSlots : slot;
  }

  __device__ __forceinline__ void release(uint64_t* barrier) {
    if (lane == 0) {
      cuda::mbarrier_arrive(barrier);
    }
  }

  __device__ __forceinline__ void start() {
    if constexpr (kKeepsRow) {
      kept_row = warp_row() + static_cast<int32_t>(lane / 4);
      asm volatile("" : "+r"(kept_row));
    }
    if (Shape::kTurns && group == Shape::kGroups - 1) {
      cuda::named_barrier_arrive(1, 256);
    }
  }

  __device__ __forceinline__ void take_turn() {
    if constexpr (Shape::kTurns) {
      cuda::named_barrier_sync(1 + group, 256, {"a consumer", "its turn"});
    }
  }

  __device__ __forceinline__ void pass_turn() {
    if constexpr (Shape::kTurns) {
      cuda::named_barrier_arrive(1 + (group + 1) % Shape::kGroups, 256);
    }
  }

  __device__ __forceinline__ void wait_keys() {
    cuda::mbarrier_wait(&barriers.k_full[k_place.stage], k_place.parity, {"a consumer", "k_full"});
  }

  __device__ __forceinline__ void release_keys() {
    release(&barriers.k_empty[k_place.stage]);
    k_place.advance();
  }

  __device__ __forceinline__ void wait_values() {
    cuda::mbarrier_wait(&barriers.v_full[v_place.stage], v_place.parity, {"a consumer", "v_full"});
  }

  __device__ __forceinline__ void release_values() {
    release(&barriers.v_empty[v_place.stage]);
    v_place.advance();
  }

  __device__ __forceinline__ void leave_queries() {
    release(&barriers.q_empty[q_place.stage]);
    q_place.advance();
  }

  /// Which tile of keys has come; where lists are walked the producer tells.
  __device__ __forceinline__ void read_step() {
    if constexpr (Shape::kListed) {
      const ForwardStep step = barriers.steps[k_place.stage];
      tile = __shfl_sync(0xffffffffu, step.tile, 0);
      partial = __shfl_sync(0xffffffffu, step.partial, 0);
      last = __shfl_sync(0xffffffffu, step.last, 0) != 0;
      if constexpr (!Shape::kGeneral) {
        next = __shfl_sync(0xffffffffu, step.next, 0);
      }
    } else {
      --tile;
      last = tile == begin;
    }
  }

  /// The tile of keys of the last scores.
  __device__ __forceinline__ int32_t seen() const {
    if constexpr (Shape::kLeads) {
      return led_tile(tile, first, lead);
    }
    return Shape::kSwaps ? swapped_tile(tile, swap) : tile;
  }

  /// Whether the tile that follows, of the same tile of queries, hides nothing.
  __device__ __forceinline__ bool plain_next() const {
    if constexpr (Shape::kListed) {
      return next < closed && next >= open;
    } else {
      return tile <= (Shape::kSwaps || Shape::kLeads ? plain : closed) && tile > open;
    }
  }

  /// Tiles of keys that other warpgroups see and this one does not.
  __device__ __forceinline__ void skip_keys(int32_t count) {
    for (; count > 0; --count) {
      wait_keys();
      take_turn();
      pass_turn();
      __syncwarp();
      release_keys();
    }
  }

  /// Those behind the leading tile, before the scores of the one that follows it.
  __device__ __forceinline__ void skip_behind() {
    if (behind > 0) {
      skip_keys(behind);
      skip = behind;
      tile -= behind;
      behind = 0;
    }
  }

  /// Their values, once this warpgroup's turn in the ring has come.
  __device__ __forceinline__ void skip_values() {
    for (; skip > 0; --skip) {
      wait_values();
      __syncwarp();
      release_values();
    }
  }

  __device__ __forceinline__ void next_tile() {
    cuda::mbarrier_wait(&barriers.q_full[q_place.stage], q_place.parity, {"a consumer", "q_full"});
    slot = (slot + 1) % kForwardSlots;
    const ForwardPart part = barriers.parts[slot][group];
    // Shuffles tell the compiler that warps do not diverge on these.
    const auto uniform = [](int32_t value) { return __shfl_sync(0xffffffffu, value, 0); };
    state = static_cast<State>(uniform(part.state));
    if (state == State::done) {
      return;
    }
    tile = uniform(part.end);
    begin = uniform(part.begin);
    open = part.open;
    closed = part.closed;
    if constexpr (Shape::kSwaps) {
      swap = uniform(part.swapped) != 0 ? tile - 2 : INT32_MAX;
      plain = min(closed, swap);
    }
    if constexpr (Shape::kLeads) {
      const int32_t right = uniform(part.right);
      const int32_t found = uniform(part.lead);
      behind = found >= 0 ? right : 0;
      tile += behind;
      first = tile - 1;
      lead = found >= 0 ? found : first;
      plain = min(closed, lead);
      skip += right - behind;
      skip_keys(right - behind);
    } else if constexpr (!Shape::kListed) {
      const int32_t right = uniform(part.right);
      skip += right;
      skip_keys(right);
    }
  }

  /// Gives the queries back when the last scores of their tile are known.
  __device__ __forceinline__ void end_tile() {
    leave_queries();
    if constexpr (!Shape::kListed) {
      const int32_t left = __shfl_sync(0xffffffffu, barriers.parts[slot][group].left, 0);
      skip_keys(left);
      skip += left;
    }
  }

  /// A tile none of whose queries is this warpgroup's.
  __device__ __forceinline__ void pass_tile(const ForwardParams& params) {
    leave_queries();
    do {
      wait_keys();
      read_step();
      take_turn();
      pass_turn();
      __syncwarp();
      release_keys();
      wait_values();
      __syncwarp();
      release_values();
    } while (!last);
    clear_results<typename Shape::T>(params, work(), work().tile.row + warp_row(), lane);
    __syncwarp();  // all lanes have read the work
    release(&barriers.work_empty[slot]);
  }
};

}  // namespace flashloom::sm90
