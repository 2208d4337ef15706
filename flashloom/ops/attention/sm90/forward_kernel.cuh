#pragma once

#include <algorithm>

#include "flashloom/ops/attention/sm90/forward_consumer.cuh"
#include "flashloom/ops/attention/sm90/forward_produce.cuh"
#include "flashloom/ops/attention/sm90/forward_rule.cuh"

// Forward attention on Hopper. A producer warpgroup streams tiles of keys and values through shared
// memory; each consumer warpgroup owns 64 queries. docs/kernels/attention.md has the picture.

namespace flashloom::sm90 {

/// One consumer warpgroup's walk over tiles of queries and, within each, over tiles of keys.
///
/// The steps of all tiles form one pipeline: the scores of the next step, be it of the same tile of
/// queries or of the next, are computed while the values of this one are summed.
template <class Shape>
class ForwardPipeline {
 public:
  __device__ __forceinline__ ForwardPipeline(const ForwardParams& params, const CUtensorMap* out,
                                             uint32_t q_tiles, uint32_t k_tiles, uint32_t v_tiles,
                                             ForwardBarriers<Shape>& barriers, int32_t group)
      : params_(params),
        out_map_(out),
        barriers_(barriers),
        q_tiles_(q_tiles + group * 64 * cuda::kPanelRowBytes),
        k_tiles_(k_tiles),
        v_tiles_(v_tiles),
        group_(group),
        lane_(threadIdx.x % 32) {}

  __device__ __forceinline__ void run() {
    if (Shape::kTurns && group_ == Shape::kGroups - 1) {
      cuda::named_barrier_arrive(1, 256);
    }
    next_tile();
    while (state_ != State::done) {
      if (state_ == State::idle) {
        pass_tile();
        next_tile();
        continue;
      }
      first_step();
      while (step<false>()) {
        if constexpr (!Shape::kGeneral) {
          // Most steps are alike: no end of a tile of queries, nothing to hide or to send.
          while (!last_ && !fresh_ && owed_ < 0 && tile_ <= closed_ && tile_ > open_) {
            step<true>();
          }
        }
      }
      last_values();
      if constexpr (!kChained) {
        next_tile();
      }
    }
  }

 private:
  enum class State { work, idle, done };

  // With one buffer of queries the next tile's cannot arrive beside the last scores of this one.
  static constexpr bool kChained = Shape::kQStages > 1 || Shape::kGeneral;
  // Results wait in shared memory until the next products run.
  static constexpr bool kLateSend = kChained && Shape::kOutPanels == Shape::kPanels;
  // At D 256 there are no registers for bits beside running products.
  static constexpr bool kEarlyBits = Shape::kDim <= 128;

  /// The first of this warp's rows within a tile of queries.
  __device__ __forceinline__ int32_t warp_row() const {
    return group_ * 64 + static_cast<int32_t>(threadIdx.x % 128 / 32 * 16);
  }

  /// The first of this thread's.
  __device__ __forceinline__ int32_t own_row() const {
    return warp_row() + static_cast<int32_t>(lane_ / 4);
  }

  /// Where this warp's results leave from.
  __device__ __forceinline__ uint32_t out_place() const {
    return v_tiles_ + Shape::kStages * Shape::kTileBytes +
           group_ * Shape::kOutPanels * Shape::kOutPanelBytes +
           threadIdx.x % 128 / 32 * 16 * cuda::kPanelRowBytes;
  }

  /// The tile whose values are summed: with chained tiles the work has moved on by then.
  __device__ __forceinline__ uint32_t done_slot() const {
    return kChained ? (slot_ + kForwardSlots - 1) % kForwardSlots : slot_;
  }

  __device__ __forceinline__ void release(uint64_t* barrier) {
    if (lane_ == 0) {
      cuda::mbarrier_arrive(barrier);
    }
  }

  __device__ __forceinline__ void take_turn() {
    if constexpr (Shape::kTurns) {
      cuda::named_barrier_sync(1 + group_, 256, {"a consumer", "its turn"});
    }
  }

  __device__ __forceinline__ void pass_turn() {
    if constexpr (Shape::kTurns) {
      cuda::named_barrier_arrive(1 + (group_ + 1) % Shape::kGroups, 256);
    }
  }

  __device__ __forceinline__ void release_keys() {
    release(&barriers_.k_empty[k_place_.stage]);
    k_place_.advance();
  }

  __device__ __forceinline__ void release_values() {
    release(&barriers_.v_empty[v_place_.stage]);
    v_place_.advance();
  }

  __device__ __forceinline__ void wait_values() {
    cuda::mbarrier_wait(&barriers_.v_full[v_place_.stage], v_place_.parity,
                        {"a consumer", "v_full"});
  }

  __device__ __forceinline__ void wait_keys() {
    cuda::mbarrier_wait(&barriers_.k_full[k_place_.stage], k_place_.parity,
                        {"a consumer", "k_full"});
  }

  /// Which tile of keys has come; in general kernels the producer tells.
  __device__ __forceinline__ void read_step() {
    if constexpr (Shape::kGeneral) {
      const ForwardStep& step = barriers_.steps[k_place_.stage];
      tile_ = __shfl_sync(0xffffffffu, step.tile, 0);
      partial_ = __shfl_sync(0xffffffffu, step.partial, 0);
      last_ = __shfl_sync(0xffffffffu, step.last, 0) != 0;
    } else {
      --tile_;
      last_ = tile_ == begin_;
    }
  }

  /// Tiles of keys that other warpgroups see and this one does not.
  __device__ __forceinline__ void skip_keys(int32_t count) {
    for (; count > 0; --count) {
      wait_keys();
      take_turn();
      pass_turn();
      __syncwarp();  // all lanes have seen the phase that the release may end
      release_keys();
    }
  }

  /// Their values, once this warpgroup's turn in the ring has come.
  __device__ __forceinline__ void skip_values() {
    for (; skip_ > 0; --skip_) {
      wait_values();
      __syncwarp();
      release_values();
    }
  }

  __device__ __forceinline__ void next_tile() {
    cuda::mbarrier_wait(&barriers_.q_full[q_place_.stage], q_place_.parity,
                        {"a consumer", "q_full"});
    slot_ = (slot_ + 1) % kForwardSlots;
    const ForwardPart part = barriers_.parts[slot_][group_];
    // Shuffles tell the compiler that warps do not diverge on these.
    const auto uniform = [](int32_t value) { return __shfl_sync(0xffffffffu, value, 0); };
    if (uniform(part.done) != 0) {
      state_ = State::done;
      return;
    }
    state_ = uniform(part.idle) == 0 ? State::work : State::idle;
    tile_ = uniform(part.end);
    begin_ = uniform(part.begin);
    open_ = part.open;
    closed_ = part.closed;
    if constexpr (!Shape::kGeneral) {
      const int32_t right = uniform(part.right);
      skip_ += right;
      skip_keys(right);
    }
  }

  /// A tile none of whose queries is this warpgroup's.
  __device__ __forceinline__ void pass_tile() {
    release(&barriers_.q_empty[q_place_.stage]);
    q_place_.advance();
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
    } while (!last_);
    clear_results<typename Shape::T>(params_, barriers_.work[slot_],
                                     barriers_.work[slot_].tile.row + warp_row(), lane_);
    release(&barriers_.work_empty[slot_]);
  }

  /// Ends the rows of the tile in `slot`; may run beside the last products.
  __device__ __forceinline__ void finish(uint32_t slot, const float (&maximum)[2],
                                         const float (&sum)[2], float (&inverse)[2]) {
    const ForwardWork& work = barriers_.work[slot];
    consumer_.finish_rows(params_, work.tile, work.sequence, work.tile.row + own_row(), lane_,
                          maximum, sum, inverse);
  }

  /// Moves the results of the tile in `slot` towards memory: through shared memory and the copy
  /// engine, but for rows of a packed sequence that another follows.
  __device__ __forceinline__ void store(uint32_t slot, const float (&inverse)[2]) {
    consumer_.divide(inverse);
    settle_out();
    if constexpr (kLateSend) {
      consumer_.template stage<0, Shape::kPanels>(out_place(), Shape::kOutPanelBytes, lane_);
      owed_ = static_cast<int32_t>(slot);
    } else {
      send_panels<0>(barriers_.work[slot]);
      release(&barriers_.work_empty[slot]);
    }
  }

  /// Sends the results that store() left in shared memory.
  __device__ __forceinline__ void deliver() {
    if (kLateSend && owed_ >= 0) {
      send<0, Shape::kPanels>(barriers_.work[owed_]);
      release(&barriers_.work_empty[owed_]);
      owed_ = -1;
    }
  }

  /// Waits until what this warp sent before has left shared memory.
  __device__ __forceinline__ void settle_out() {
    cuda::bulk_wait_read<0>();
    __syncwarp();
  }

  template <int kFirst>
  __device__ __forceinline__ void send_panels(const ForwardWork& work) {
    if constexpr (kFirst < Shape::kPanels) {
      constexpr int kCount = std::min(Shape::kOutPanels, Shape::kPanels - kFirst);
      if constexpr (kFirst > 0) {
        settle_out();
      }
      consumer_.template stage<kFirst, kCount>(out_place(), Shape::kOutPanelBytes, lane_);
      send<kFirst, kCount>(work);
      send_panels<kFirst + kCount>(work);
    }
  }

  template <int kFirst, int kCount>
  __device__ __forceinline__ void send(const ForwardWork& work) {
    cuda::fence_async_shared();
    __syncwarp();
    const int32_t first = work.tile.row + warp_row();
    const bool packed = params_.problem.cu_query != nullptr;
    if (packed && first + 16 > work.sequence.query_rows) {
      copy_rows<typename Shape::T>(params_, work, first, 64 * kFirst, kCount, out_place(),
                                   Shape::kOutPanelBytes, lane_);
    } else if (lane_ == 0) {
#pragma unroll
      for (int p = 0; p < kCount; ++p) {
        cuda::tma_store_4d(out_map_, out_place() + p * Shape::kOutPanelBytes, (kFirst + p) * 64,
                           work.sequence.query_first + first, work.tile.head,
                           packed ? 0 : work.tile.batch);
      }
      cuda::bulk_commit();
    }
    __syncwarp();
  }

  __device__ __forceinline__ void issue_scores() {
    uint32_t queries = q_tiles_ + q_place_.stage * Shape::kQBytes;
    if constexpr (Shape::kGeneral && Shape::kDim > 128) {
      // Descriptors of the one buffer would be held in registers that are not there.
      asm volatile("" : "+r"(queries));
    }
    consumer_.issue_scores(queries, k_tiles_ + k_place_.stage * Shape::kTileBytes);
  }

  template <bool kPlain = false>
  __device__ __forceinline__ void issue_values() {
    consumer_.issue_out(v_tiles_ + v_place_.stage * Shape::kTileBytes, !kPlain && fresh_);
    fresh_ = false;
  }

  /// Scores as they enter the softmax.
  __device__ __forceinline__ void finish_scores() {
    const ForwardWork& work = barriers_.work[slot_];
    const int32_t row = work.tile.row + own_row();
    const int32_t key = tile_ * Shape::kKeys;
    if constexpr (Shape::kGeneral) {
      const int32_t distance =
          key + 2 * static_cast<int32_t>(lane_ % 4) - row - work.sequence.offset;
      if (params_.rule.adjusts) {
        ForwardScorer<Shape>::adjust(params_, consumer_.scores);
      }
      if (params_.rule.slopes != nullptr) {
        ForwardScorer<Shape>::add_slope(barriers_.slopes[slot_] * params_.rule.slope_unit,
                                        consumer_.scores, distance);
      }
      if (partial_ >= 0) {
        if constexpr (!kEarlyBits) {
          ForwardScorer<Shape>::load_bits(params_, partial_, own_row(), bits_);
        }
        ForwardScorer<Shape>::apply_bits(bits_, lane_, consumer_.scores);
      }
      if (params_.rule.exclude_self) {
        ForwardScorer<Shape>::exclude_self(consumer_.scores, distance);
      }
      if (tile_ < 0) {
        consumer_.hide();
      }
    }
    if (tile_ >= closed_ || tile_ < open_) {
      consumer_.mask(work.sequence, row, key, lane_, tile_ < open_);
    }
  }

  /// What a step needs to know beside its scores; runs while they are computed.
  __device__ __forceinline__ void prepare() {
    if constexpr (Shape::kGeneral) {
      const ForwardWork& work = barriers_.work[slot_];
      if (kEarlyBits && partial_ >= 0) {
        ForwardScorer<Shape>::load_bits(params_, partial_, own_row(), bits_);
      }
      if (params_.rule.seed != nullptr) {
        ForwardScorer<Shape>::draw(
            params_, work.tile,
            static_cast<uint32_t>(work.sequence.query_start + work.tile.row + own_row()),
            static_cast<uint32_t>(params_.problem.key_start + tile_ * Shape::kKeys), lane_, kept_);
      }
    }
  }

  __device__ __forceinline__ void drop() {
    if constexpr (Shape::kGeneral) {
      if (params_.rule.seed != nullptr) {
        ForwardScorer<Shape>::drop(kept_, consumer_.scores);
      }
    }
  }

  __device__ __forceinline__ void leave_queries() {
    release(&barriers_.q_empty[q_place_.stage]);
    q_place_.advance();
  }

  /// The first scores of a tile with no tile before it to hide under.
  __device__ __forceinline__ void first_step() {
    consumer_.start_rows();
    fresh_ = true;
    wait_keys();
    take_turn();
    cuda::wgmma_hold(consumer_.scores);
    cuda::wgmma_fence();
    issue_scores();
    pass_turn();
    read_step();
    prepare();
    cuda::wgmma_wait<0>();
    cuda::wgmma_hold(consumer_.scores);
    release_keys();
    finish_scores();
    moved_ = consumer_.exponentials(params_, factor_);
    cuda::wgmma_hold(consumer_.scores);
    drop();
    cuda::wgmma_hold(consumer_.scores);
    consumer_.pack();
    skip_values();
  }

  /// Values of this step beside scores of the next; false if no tile follows to go on with. A plain
  /// step is one of those that run() tells apart.
  template <bool kPlain>
  __device__ __forceinline__ bool step() {
    const bool last = !kPlain && last_;
    if (last) {
      // Of the tile before one of a single step: where only two are known, the next one waits for
      // it. General kernels have no registers for it.
      if (!Shape::kGeneral && params_.ahead < 3) {
        deliver();
      }
      leave_queries();
      if constexpr (!Shape::kGeneral) {
        const int32_t left = __shfl_sync(0xffffffffu, barriers_.parts[slot_][group_].left, 0);
        skip_keys(left);
        skip_ += left;
      }
      if constexpr (!kChained) {
        return false;
      }
      next_tile();
      if (state_ != State::work) {
        return false;
      }
    }
    wait_keys();
    take_turn();
    cuda::wgmma_hold(consumer_.scores);
    cuda::wgmma_hold(consumer_.weights);
    cuda::wgmma_hold(consumer_.out);
    cuda::wgmma_fence();
    issue_scores();
    wait_values();
    cuda::wgmma_hold(consumer_.out);
    cuda::wgmma_fence();
    issue_values<kPlain>();
    pass_turn();
    // In the shadow of the products.
    read_step();
    prepare();
    if constexpr (!kPlain) {
      deliver();
    }
    if (moved_) {
      consumer_.set_limits(params_);
    }
    cuda::wgmma_wait<1>();
    cuda::wgmma_hold(consumer_.scores);
    release_keys();
    if constexpr (!kPlain) {
      finish_scores();
    }
    const float sum[2] = {consumer_.sum[0], consumer_.sum[1]};
    const float maximum[2] = {consumer_.maximum[0], consumer_.maximum[1]};
    if (last) {
      consumer_.start_rows();
    }
    moved_ = consumer_.exponentials(params_, factor_);
    if constexpr (Shape::kGeneral) {
      cuda::wgmma_hold(consumer_.scores);
      drop();
    }
    float inverse[2];
    if (last) {
      finish(done_slot(), maximum, sum, inverse);
    }
    cuda::schedule_fence(consumer_.sum[0] + consumer_.sum[1]);
    cuda::wgmma_hold(consumer_.scores);
    cuda::wgmma_wait<0>();
    cuda::wgmma_hold(consumer_.out);
    release_values();
    if (last) {
      skip_values();
      store(done_slot(), inverse);
      fresh_ = true;
    } else if (moved_) {
      consumer_.rescale(factor_);
    }
    consumer_.pack();
    return true;
  }

  /// The end of a tile that no scores run beside.
  __device__ __forceinline__ void last_values() {
    wait_values();
    cuda::wgmma_hold(consumer_.out);
    cuda::wgmma_hold(consumer_.weights);
    cuda::wgmma_fence();
    issue_values();
    deliver();
    float inverse[2];
    finish(done_slot(), consumer_.maximum, consumer_.sum, inverse);
    cuda::wgmma_wait<0>();
    cuda::wgmma_hold(consumer_.out);
    release_values();
    skip_values();
    store(done_slot(), inverse);
    deliver();
  }

  const ForwardParams& params_;
  const CUtensorMap* out_map_;
  ForwardBarriers<Shape>& barriers_;
  uint32_t q_tiles_, k_tiles_, v_tiles_;
  int32_t group_;
  uint32_t lane_;
  ForwardConsumer<Shape> consumer_;
  typename ForwardScorer<Shape>::Bits bits_;
  typename ForwardScorer<Shape>::Kept kept_;
  cuda::PipelineState<Shape::kQStages> q_place_;
  cuda::PipelineState<Shape::kStages> k_place_, v_place_;
  float factor_[2] = {1, 1};
  State state_ = State::done;
  uint32_t slot_ = kForwardSlots - 1;
  bool fresh_ = true;             // the next product of values is a tile's first
  bool moved_ = false;            // maxima moved in the last step
  int32_t owed_ = -1;             // slot of the tile whose results wait to be sent
  int32_t tile_ = 0, begin_ = 0;  // tile of keys of the last scores; the first of this warpgroup
  int32_t partial_ = -1;
  bool last_ = false;
  int32_t open_ = 0, closed_ = 0;  // tiles before `open` and from `closed` on hide something
  int32_t skip_ = 0;               // tiles of values to skip when this one's have been summed
};

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    attention_forward_kernel(const __grid_constant__ ForwardParams params,
                             const __grid_constant__ CUtensorMap q,
                             const __grid_constant__ CUtensorMap k,
                             const __grid_constant__ CUtensorMap v,
                             const __grid_constant__ CUtensorMap out) {
  using namespace cuda;
  extern __shared__ __align__(1024) char shared[];
  static_assert(sizeof(ForwardBarriers<Shape>) <= Shape::kBarrierBytes);
  auto& barriers = *reinterpret_cast<ForwardBarriers<Shape>*>(shared);
  char* q_tiles = shared + Shape::kBarrierBytes;
  char* k_tiles = q_tiles + Shape::kQStages * Shape::kQBytes;
  char* v_tiles = k_tiles + Shape::kStages * Shape::kTileBytes;
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&q);
    prefetch_tensor_map(&k);
    prefetch_tensor_map(&v);
    prefetch_tensor_map(&out);
    constexpr uint32_t kWarps = 4 * Shape::kGroups;
    for (int i = 0; i < Shape::kQStages; ++i) {
      mbarrier_init(&barriers.q_full[i], 1);
      mbarrier_init(&barriers.q_empty[i], kWarps);
    }
    for (int i = 0; i < Shape::kStages; ++i) {
      mbarrier_init(&barriers.k_full[i], 1);
      mbarrier_init(&barriers.k_empty[i], kWarps);
      mbarrier_init(&barriers.v_full[i], 1);
      mbarrier_init(&barriers.v_empty[i], kWarps);
      mbarrier_init(&barriers.v_border[i], 1);
    }
    for (uint32_t i = 0; i < kForwardSlots; ++i) {
      mbarrier_init(&barriers.work_full[i], 1);
      mbarrier_init(&barriers.work_empty[i], kWarps);
    }
    mbarrier_init_fence();
    begin_debug_block();
  }
  __syncthreads();
  const int32_t warpgroup = __shfl_sync(0xffffffffu, static_cast<int32_t>(threadIdx.x / 128), 0);
  if (warpgroup == 0) {
    register_limit_lower<Shape::kProducerRegisters>();
    const uint32_t warp = threadIdx.x / 32;
    if (warp == 0) {
      forward_produce_queries<Shape>(params, &q, q_tiles, barriers);
    } else if (warp == 1) {
      forward_produce_keys<Shape, false>(params, &k, k_tiles, barriers);
    } else if (warp == 2) {
      forward_produce_keys<Shape, true>(params, &v, v_tiles, barriers);
    } else {
      forward_produce_work<Shape>(params, barriers);
    }
  } else {
    register_limit_raise<Shape::kConsumerRegisters>();
    ForwardPipeline<Shape>(params, &out, shared_address(q_tiles), shared_address(k_tiles),
                           shared_address(v_tiles), barriers, warpgroup - 1)
        .run();
    // Shared memory must outlive the copies out of it.
    bulk_wait<0>();
  }
}

}  // namespace flashloom::sm90
