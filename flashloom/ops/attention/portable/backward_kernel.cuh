#pragma once

#include "flashloom/cuda/ptx/cp_async.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/ops/attention/portable/backward_scores.cuh"

// The backward pass in two launches of one kernel, without atomics, so that its bits never change:
//
//   queries outside: a block a tile of queries walks tiles of keys      dQ  = sum dS K
//   keys outside:    a block a tile of keys walks tiles of queries of   dK  = sum dS^T Q
//                    all heads that read the keys                       dV  = sum P^T dO
//
// Seen from a block both are the same: rows x1 (D wide) and x2 (E wide) of the outer tile stay in
// shared memory, those of inner tiles y1 and y2 pass by; S = x1 y1^T, dP = x2 y2^T, and the results
// are sums of dS y1 and of P y2. The price of that is that S and dP are computed twice.

namespace flashloom::portable {

/// kOnlyValues: dV alone, where dK and dV have blocks of their own.
template <class Shape, Side kSide, bool kOnlyValues>
class BackwardBlock {
 public:
  using T = typename Shape::T;
  static constexpr int kTiles = Shape::kInner / 8;
  static constexpr int kDim = Shape::kDim;
  static constexpr bool kKeys = kSide == Side::keys;
  static constexpr bool kTwoSums = kKeys && !Shape::kSplit;

  __device__ __forceinline__ BackwardBlock(const BackwardParams& params, unsigned char* memory)
      : params_(params),
        shared_(*reinterpret_cast<typename Shape::Shared*>(memory + Shape::kTileBytes)),
        x1_(cuda::shared_address(memory)),
        x2_(x1_ + Shape::kOuter * Shape::kRowBytes),
        inner_(x2_ + Shape::kOuter * Shape::kRowBytes),
        lane_(threadIdx.x % 32),
        warp_(threadIdx.x / 32),
        scores_(params, shared_) {
    const GeometrySource& source = params.problem.source;
    const int32_t heads = kKeys ? source.key_heads : source.heads;
    const int32_t of_head = static_cast<int32_t>(blockIdx.x) / params.tiles;
    const int32_t at = static_cast<int32_t>(blockIdx.x) % params.tiles;
    // Long tiles of a causal mask first: late queries, early keys.
    tile_ = kKeys ? at : params.tiles - 1 - at;
    head_ = of_head % heads;
    sequence_ = of_head / heads;
    group_ = source.heads / source.key_heads;
  }

  __device__ __forceinline__ void run() {
    const Problem& problem = params_.problem;
    lengths_ = resolve_rows(problem.source, sequence_);
    outer_size_ = kKeys ? problem.tile.keys : problem.tile.rows;
    inner_size_ = kKeys ? problem.tile.rows : problem.tile.keys;
    first_ = tile_ * outer_size_;
    if (first_ >= (kKeys ? lengths_.key_rows : lengths_.query_rows)) {
      return;
    }
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      sums_[n][0] = sums_[n][1] = sums_[n][2] = sums_[n][3] = 0;
      if constexpr (kTwoSums) {
        value_sums_[n][0] = value_sums_[n][1] = value_sums_[n][2] = value_sums_[n][3] = 0;
      }
    }
    bool loaded = false;
    for (int32_t h = 0; h < (kKeys ? group_ : 1); ++h) {
      query_head_ = kKeys ? head_ * group_ + h : head_;
      __syncthreads();  // all have left the walk before
      if (threadIdx.x == 0) {
        shared_.walk.start(problem.source, sequence_, query_head_, kKeys, tile_, problem.tile);
        shared_.x1 = side_rows(kKeys, false);
        shared_.x2 = side_rows(kKeys, true);
        shared_.y1 = side_rows(!kKeys, false);
        shared_.y2 = side_rows(!kKeys, true);
      }
      __syncthreads();
      scores_.start(sequence_, query_head_, first_of_all(problem, lengths_, sequence_),
                    inner_size_);
      walk_inner(loaded);
    }
    finish();
  }

 private:
  __device__ __forceinline__ const HeadGeometry& geometry() const {
    return shared_.walk.geometry();
  }

  __device__ __forceinline__ int32_t inner_rows(const Step& step) const {
    return min(inner_size_, geometry().inner.count - step.tile * inner_size_);
  }

  __device__ __forceinline__ uint32_t y1(int stage) const {
    return inner_ + stage * 2 * Shape::kInner * Shape::kRowBytes;
  }

  __device__ __forceinline__ uint32_t y2(int stage) const {
    return y1(stage) + Shape::kInner * Shape::kRowBytes;
  }

  // Rows of q and dout, or of k and v, on either side of the walk.
  __device__ __forceinline__ HeadRows side_rows(bool keys, bool second) const {
    const Problem& problem = params_.problem;
    const int32_t h = keys ? query_head_ / group_ : query_head_;
    HeadRows rows =
        head_rows(keys ? (second ? problem.v : problem.k) : (second ? params_.dout : problem.q),
                  sequence_, h, keys ? lengths_.key_first : lengths_.query_first);
    rows.positions = keys == kKeys ? geometry().outer.positions : geometry().inner.positions;
    const int32_t* index = problem.source.output_index.at(sequence_, h);
    if (!keys && second && index != nullptr) {
      rows.index = index + lengths_.query_first;
      rows.index_limit = lengths_.query_rows;
    }
    return rows;
  }

  __device__ __forceinline__ void load_outer() const {
    const Problem& problem = params_.problem;
    const int32_t rows = max(0, min(outer_size_, geometry().outer.count - first_));
    load_tile<T, Shape::kOuter, kDim, Shape::kThreads>(x1_, shared_.x1, first_, rows,
                                                       problem.head_dim);
    load_tile<T, Shape::kOuter, kDim, Shape::kThreads>(x2_, shared_.x2, first_, rows,
                                                       problem.value_dim);
  }

  __device__ __forceinline__ void load_y1(const Step& step, int stage) const {
    load_tile<T, Shape::kInner, kDim, Shape::kThreads>(
        y1(stage), shared_.y1, step.tile * inner_size_, inner_rows(step), params_.problem.head_dim);
  }

  __device__ __forceinline__ void load_y2(const Step& step, int stage) const {
    load_tile<T, Shape::kInner, kDim, Shape::kThreads>(y2(stage), shared_.y2,
                                                       step.tile * inner_size_, inner_rows(step),
                                                       params_.problem.value_dim);
  }

  __device__ __forceinline__ void walk_inner(bool& loaded) {
    Walk steps(shared_.walk);
    Step next = {};
    bool more = steps.next(next);
    if (!more) {
      return;
    }
    const ThreadPairs pairs(geometry(), first_, outer_size_, warp_, lane_);
    if constexpr (!kKeys) {
      scores_.load_row_numbers(pairs);
    }
    if (!loaded) {
      load_outer();
      loaded = true;
    }
    if constexpr (Shape::kSplit) {
      walk_one_buffer(steps, next, pairs);
    } else {
      walk_two_buffers(steps, next, pairs);
    }
  }

  // A whole inner tile is on its way while the one before is multiplied.
  __device__ __forceinline__ void walk_two_buffers(Walk& steps, Step next,
                                                   const ThreadPairs& pairs) {
    const auto load = [&](const Step& step, int stage) {
      load_y1(step, stage);
      load_y2(step, stage);
      scores_.load_numbers(step, stage);
    };
    load(next, 0);
    cuda::cp_async_commit();
    int stage = 0;
    bool more = true;
    while (more) {
      const Step step = next;
      more = steps.next(next);
      if (more) {
        load(next, stage ^ 1);
      }
      cuda::cp_async_commit();
      cuda::cp_async_wait<1>();
      __syncthreads();
      float p[kTiles][4];
      float ds[kTiles][4];
      multiply_along<T, kDim, kTiles>(p, x1_, warp_ * 16, y1(stage), params_.problem.head_dim,
                                      lane_);
      multiply_along<T, kDim, kTiles>(ds, x2_, warp_ * 16, y2(stage), params_.problem.value_dim,
                                      lane_);
      scores_.differentiate_tile(p, ds, pairs, step, stage);
      if constexpr (kTwoSums) {
        multiply_down<T, kDim, kTiles>(value_sums_, p, y2(stage), params_.problem.value_dim, lane_);
      }
      multiply_down<T, kDim, kTiles>(sums_, ds, y1(stage), params_.problem.head_dim, lane_);
      __syncthreads();
      stage ^= 1;
    }
    cuda::cp_async_wait<0>();
  }

  // One buffer for y1 and one for y2: the one that only the first product reads is filled again
  // beside the second one. With dS that is y2 (dP first), for dV it is y1.
  __device__ __forceinline__ void walk_one_buffer(Walk& steps, Step next,
                                                  const ThreadPairs& pairs) {
    const Problem& problem = params_.problem;
    const auto load_first = [&](const Step& step) {
      if constexpr (kOnlyValues) {
        load_y1(step, 0);
      } else {
        load_y2(step, 0);
      }
      cuda::cp_async_commit();
    };
    const auto load_second = [&](const Step& step) {
      if constexpr (kOnlyValues) {
        load_y2(step, 0);
      } else {
        load_y1(step, 0);
      }
      scores_.load_numbers(step, 0);
      cuda::cp_async_commit();
    };
    load_first(next);
    cuda::cp_async_wait<0>();
    __syncthreads();
    load_second(next);
    bool more = true;
    while (more) {
      const Step step = next;
      more = steps.next(next);
      float p[kTiles][4] = {};
      float ds[kTiles][4] = {};
      if constexpr (kOnlyValues) {
        multiply_along<T, kDim, kTiles>(p, x1_, warp_ * 16, y1(0), problem.head_dim, lane_);
      } else {
        multiply_along<T, kDim, kTiles>(ds, x2_, warp_ * 16, y2(0), problem.value_dim, lane_);
      }
      cuda::cp_async_wait<0>();
      __syncthreads();  // the second operand is there, the first one has been read
      if (more) {
        load_first(next);
      }
      if constexpr (!kOnlyValues) {
        multiply_along<T, kDim, kTiles>(p, x1_, warp_ * 16, y1(0), problem.head_dim, lane_);
      }
      scores_.differentiate_tile(p, ds, pairs, step, 0);
      if constexpr (kOnlyValues) {
        multiply_down<T, kDim, kTiles>(sums_, p, y2(0), problem.value_dim, lane_);
      } else {
        multiply_down<T, kDim, kTiles>(sums_, ds, y1(0), problem.head_dim, lane_);
      }
      cuda::cp_async_wait<0>();
      __syncthreads();
      if (more) {
        load_second(next);
      }
    }
  }

  __device__ __forceinline__ void finish() {
    const float scale = params_.problem.score.scale;
    if constexpr (!kKeys) {
      store(params_.dq, lengths_.query_first, lengths_.query_rows, params_.problem.head_dim, sums_,
            scale);
    } else if constexpr (kOnlyValues) {
      store_values(sums_);
    } else {
      store(params_.dk, lengths_.key_first, lengths_.key_rows, params_.problem.head_dim, sums_,
            scale);
      if constexpr (kTwoSums) {
        store_values(value_sums_);
      }
    }
  }

  __device__ __forceinline__ void store_values(const float (&sums)[kDim / 8][4]) const {
    store(params_.dv, lengths_.key_first, lengths_.key_rows, params_.problem.value_dim, sums, 1);
  }

  // Rows behind those that exist, padding of the sequence, become 0.
  __device__ __forceinline__ void store(const RowsView& view, int32_t first_row, int32_t row_count,
                                        int32_t width, const float (&sums)[kDim / 8][4],
                                        float scale) const {
    const HeadRows rows = head_rows(view, sequence_, head_, first_row);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int32_t at = static_cast<int32_t>(warp_ * 16 + lane_ / 4) + 8 * r;
      if (at >= outer_size_ || first_ + at >= row_count) {
        continue;
      }
      char* to = const_cast<char*>(rows.data) + int64_t{first_ + at} * rows.row_bytes;
      const bool exists = first_ + at < geometry().outer.count;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        store_pair(to, view.dtype, static_cast<int32_t>(8 * n + 2 * (lane_ % 4)), width,
                   exists ? sums[n][2 * r] * scale : 0, exists ? sums[n][2 * r + 1] * scale : 0,
                   params_.accumulate);
      }
    }
  }

  const BackwardParams& params_;
  typename Shape::Shared& shared_;
  uint32_t x1_, x2_, inner_;  // tiles in shared memory
  uint32_t lane_, warp_;
  int32_t tile_, head_, sequence_, group_, query_head_;
  int32_t outer_size_, inner_size_, first_;
  SequenceRows lengths_;
  BackwardScores<Shape, kSide> scores_;
  float sums_[kDim / 8][4];                       // dQ or dK, dV alone
  float value_sums_[kTwoSums ? kDim / 8 : 1][4];  // dV
};

template <class Shape, Side kSide>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kDim > 128 ? 1 : 2)
    attention_backward_kernel(const __grid_constant__ BackwardParams params) {
  extern __shared__ __align__(1024) unsigned char memory[];
  if constexpr (kSide == Side::keys && Shape::kSplit) {
    if (blockIdx.y == 1) {
      BackwardBlock<Shape, kSide, true>(params, memory).run();
      return;
    }
  }
  BackwardBlock<Shape, kSide, false>(params, memory).run();
}

}  // namespace flashloom::portable
