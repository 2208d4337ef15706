#pragma once

#include "flashloom/cuda/ptx/cp_async.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/ops/attention/portable/pairs.cuh"

// The forward pass: a block of threads a tile of queries of one head, 16 rows a warp. Keys and
// values have one buffer each: while one is multiplied, the other one is on its way; two or three
// blocks a multiprocessor fill the gaps.

namespace flashloom::portable {

template <class Element, int kHeadDim, int kWarpCount, int kTileKeys>
struct ForwardShape {
  using T = Element;
  static constexpr int kDim = kHeadDim;  // of the tiles; narrower rows are padded with zeros
  static constexpr int kWarps = kWarpCount;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRows = 16 * kWarps;
  static constexpr int kKeys = kTileKeys;
  static constexpr int kRowBytes = kDim * static_cast<int>(sizeof(T));
  static constexpr int kTileBytes = (kRows + 2 * kKeys) * kRowBytes;

  struct Shared {
    SharedWalk walk;
    HeadRows queries, keys, values;
  };

  static constexpr int kSharedBytes = kTileBytes + static_cast<int>(sizeof(Shared));
  static_assert(kSharedBytes <= kLeastSharedMemory);
};

struct ForwardParams {
  Problem problem;
  RowsView out;
  RowsView lse, entropy;  // data may be null
  float entropy_order = 1;
  int32_t tiles = 0;  // of queries, a (sequence, head)
};

/// Running softmax of a thread's two rows, the top in units of the scores. `sum` and `moment` are
/// the thread's own parts.
struct RunningRow {
  float top = -__builtin_huge_valf();
  float sum = 0;
  float moment = 0;  // Shannon: sum of p log2 p; Renyi: of p^order, p = e^(score - top)
};

template <class Shape>
class ForwardBlock {
 public:
  using T = typename Shape::T;
  static constexpr int kTiles = Shape::kKeys / 8;
  static constexpr int kDim = Shape::kDim;

  __device__ __forceinline__ ForwardBlock(const ForwardParams& params, unsigned char* memory)
      : params_(params),
        shared_(*reinterpret_cast<typename Shape::Shared*>(memory + Shape::kTileBytes)),
        queries_(cuda::shared_address(memory)),
        keys_(queries_ + Shape::kRows * Shape::kRowBytes),
        values_(keys_ + Shape::kKeys * Shape::kRowBytes),
        lane_(threadIdx.x % 32),
        warp_(threadIdx.x / 32) {
    const int32_t tiles = params.tiles;
    const int32_t of_head = static_cast<int32_t>(blockIdx.x) / tiles;
    // Last tiles first: under a causal mask they are the longest.
    tile_ = tiles - 1 - static_cast<int32_t>(blockIdx.x) % tiles;
    head_ = of_head % params.problem.source.heads;
    sequence_ = of_head / params.problem.source.heads;
  }

  __device__ __forceinline__ void run() {
    const Problem& problem = params_.problem;
    const SequenceRows lengths = resolve_rows(problem.source, sequence_);
    const int32_t first = tile_ * problem.tile.rows;
    if (first >= lengths.query_rows) {
      return;
    }
    SharedWalk& walk = shared_.walk;
    const HeadGeometry& geometry = walk.geometry();
    if (threadIdx.x == 0) {
      walk.start(problem.source, sequence_, head_, false, tile_, problem.tile);
      const int32_t key_head = head_ / (problem.source.heads / problem.source.key_heads);
      shared_.keys = key_rows(problem, problem.k, geometry, lengths, sequence_, key_head);
      shared_.values = key_rows(problem, problem.v, geometry, lengths, sequence_, key_head);
      shared_.queries = query_rows(problem.q, geometry, lengths, sequence_, head_);
    }
    __syncthreads();
    const ThreadPairs pairs(geometry, first, problem.tile.rows, warp_, lane_);
#pragma unroll
    for (int n = 0; n < kDim / 8; ++n) {
      sums_[n][0] = sums_[n][1] = sums_[n][2] = sums_[n][3] = 0;
    }
    const int32_t rows = max(0, min(problem.tile.rows, geometry.outer.count - first));
    Walk steps(walk);
    Step next = {};
    bool more = steps.next(next);
    if (more) {
      load_tile<T, Shape::kRows, kDim, Shape::kThreads>(queries_, shared_.queries, first, rows,
                                                        problem.head_dim);
      load_keys(shared_.keys, keys_, next, geometry, problem.head_dim);
    }
    while (more) {
      const Step step = next;
      more = steps.next(next);
      const int32_t inner = step.tile * problem.tile.keys;
      const int32_t count = inner_rows(step, geometry);
      const bool by_pairs = needs_pairs(problem.score, geometry, step);
      cuda::cp_async_wait<0>();
      __syncthreads();  // keys are there; the last values have been read
      load_keys(shared_.values, values_, step, geometry, problem.value_dim);
      float scores[kTiles][4];
      multiply_along<T, kDim, kTiles>(scores, queries_, warp_ * 16, keys_, problem.head_dim, lane_);
      if (by_pairs) {
        finish_scores(scores, geometry, pairs, step, inner, count);
      } else {
        if (problem.score.scale < 0) {
          negate(scores);
        }
        if ((step.flags & (kRunBounds | kRunPositions)) != 0 || count < Shape::kKeys) {
          pairs.hide_outside(scores, geometry, inner, count, (step.flags & kRunPositions) != 0,
                             -infinity());
        }
      }
      soften(scores);
      if (problem.score.dropout) {
        drop(scores, geometry, pairs, step, inner, count);
      }
      cuda::cp_async_wait<0>();
      __syncthreads();  // values are there; the keys have been read
      if (more) {
        load_keys(shared_.keys, keys_, next, geometry, problem.head_dim);
      }
      multiply_down<T, kDim, kTiles>(sums_, scores, values_, problem.value_dim, lane_);
    }
    finish(geometry, pairs, lengths, first, rows);
  }

 private:
  __device__ __forceinline__ int32_t inner_rows(const Step& step,
                                                const HeadGeometry& geometry) const {
    const int32_t keys = params_.problem.tile.keys;
    return min(keys, geometry.inner.count - step.tile * keys);
  }

  __device__ __forceinline__ void load_keys(const HeadRows& rows, uint32_t to, const Step& step,
                                            const HeadGeometry& geometry, int32_t width) const {
    load_tile<T, Shape::kKeys, kDim, Shape::kThreads>(
        to, rows, step.tile * params_.problem.tile.keys, inner_rows(step, geometry), width);
    cuda::cp_async_commit();
  }

  // Scores are raw products, less those of a negative scale, or final scores where more than the
  // scale happens to them. Only differences from the row's maximum are multiplied: scores of some
  // hundreds would be rounded once more.
  __device__ __forceinline__ float natural_unit() const {
    return params_.problem.score.general() ? 1 : fabsf(params_.problem.score.scale);
  }

  static __device__ __forceinline__ void negate(float (&scores)[kTiles][4]) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        scores[n][e] = -scores[n][e];
      }
    }
  }

  // The rare rules, one pair after the other: in an array that may be indexed, so that the code is
  // there once.
  __device__ __forceinline__ void finish_scores(float (&scores)[kTiles][4],
                                                const HeadGeometry& geometry,
                                                const ThreadPairs& pairs, const Step& step,
                                                int64_t inner, int32_t count) const {
    const HeadScore rule = head_score(params_.problem.score, sequence_, head_);
    const bool general = params_.problem.score.general();
    float values[4 * kTiles];
#pragma unroll
    for (int i = 0; i < 4 * kTiles; ++i) {
      values[i] = scores[i / 4][i % 4];
    }
#pragma unroll 1
    for (int i = 0; i < 4 * kTiles; ++i) {
      const Pair pair(geometry, step, params_.problem.partial_count, pairs.row(i / 2 % 2), inner,
                      count, pairs.column(i / 4, i));
      float score = rule.scale < 0 ? -values[i] : values[i];
      if (general && pair.visible) {
        float slope;
        score = final_score(rule, values[i], pair.query, pair.key,
                            pair.key_position - pair.query_position, slope);
      }
      values[i] = pair.visible ? score : -infinity();
    }
#pragma unroll
    for (int i = 0; i < 4 * kTiles; ++i) {
      scores[i / 4][i % 4] = values[i];
    }
  }

  // Scores become e^(score - top); what was summed before shrinks when the top rises.
  __device__ __forceinline__ void soften(float (&scores)[kTiles][4]) {
    const float unit = natural_unit() * kLog2E;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      RunningRow& row = rows_[r];
      float top = row.top;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        top = fmaxf(top, fmaxf(scores[n][2 * r], scores[n][2 * r + 1]));
      }
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
      const float base = top == -infinity() ? 0 : top;
      const float shrink = cuda::exp2_fast((row.top - base) * unit);
      if (params_.entropy.data != nullptr) {
        update_moment(scores, r, base, unit, shrink);
      }
      row.top = top;
      float sum = row.sum * shrink;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int e = 2 * r; e < 2 * r + 2; ++e) {
          scores[n][e] = cuda::exp2_fast((scores[n][e] - base) * unit);
          sum += scores[n][e];
        }
      }
      row.sum = sum;
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        sums_[n][2 * r] *= shrink;
        sums_[n][2 * r + 1] *= shrink;
      }
    }
  }

  __device__ __forceinline__ void update_moment(const float (&scores)[kTiles][4], int r, float base,
                                                float unit, float shrink) {
    RunningRow& row = rows_[r];
    const float order = params_.entropy_order;
    if (row.top != -infinity()) {
      const float moved = (row.top - base) * unit;
      row.moment =
          order == 1 ? shrink * (row.moment + moved * row.sum) : exp2f(order * moved) * row.moment;
    }
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 2 * r; e < 2 * r + 2; ++e) {
        const float x = (scores[n][e] - base) * unit;
        if (x > -infinity()) {
          row.moment += order == 1 ? cuda::exp2_fast(x) * x : cuda::exp2_fast(order * x);
        }
      }
    }
  }

  __device__ __forceinline__ void drop(float (&scores)[kTiles][4], const HeadGeometry& geometry,
                                       const ThreadPairs& pairs, const Step& step, int64_t inner,
                                       int32_t count) const {
    const HeadScore rule = head_score(params_.problem.score, sequence_, head_);
    float values[4 * kTiles];
#pragma unroll
    for (int i = 0; i < 4 * kTiles; ++i) {
      values[i] = scores[i / 4][i % 4];
    }
#pragma unroll 1
    for (int i = 0; i < 4 * kTiles; ++i) {
      const Pair pair(geometry, step, params_.problem.partial_count, pairs.row(i / 2 % 2), inner,
                      count, pairs.column(i / 4, i));
      values[i] *= pair.visible ? dropout_factor(rule, pair.query_position, pair.key_position) : 0;
    }
#pragma unroll
    for (int i = 0; i < 4 * kTiles; ++i) {
      scores[i / 4][i % 4] = values[i];
    }
  }

  // Sums of the four threads of a row, the sink, and the results.
  __device__ __forceinline__ void finish(const HeadGeometry& geometry, const ThreadPairs& pairs,
                                         const SequenceRows& lengths, int32_t first, int32_t rows) {
    const Problem& problem = params_.problem;
    const HeadRows out = output_rows(problem, params_.out, geometry, lengths, sequence_, head_);
    const bool indexed = out.index != nullptr;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      RunningRow row = rows_[r];
#pragma unroll
      for (int step = 1; step < 4; step *= 2) {
        row.sum += __shfl_xor_sync(0xffffffffu, row.sum, step);
        row.moment += __shfl_xor_sync(0xffffffffu, row.moment, step);
      }
      const int32_t at = static_cast<int32_t>(warp_ * 16 + lane_ / 4) + 8 * r;
      // Padding behind the queries in use becomes 0; with an index it was cleared before.
      const bool padding =
          !indexed && at >= rows && at < problem.tile.rows && first + at < lengths.query_rows;
      if (at >= rows && !padding) {
        continue;
      }
      float lse = -infinity();
      float entropy = 0;
      const float factor = padding ? 0 : finish_row(row, lse, entropy);
      const char* place =
          padding ? out.data + int64_t{first + at} * out.row_bytes : place_of(out, first + at);
      if (place == nullptr) {
        continue;
      }
      char* to = const_cast<char*>(place);
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        // An empty row holds 0 times 0; a factor of 0 must not meet an infinity.
        store_pair(to, params_.out.dtype, pairs.column(n, 0), problem.value_dim,
                   factor == 0 ? 0 : sums_[n][2 * r] * factor,
                   factor == 0 ? 0 : sums_[n][2 * r + 1] * factor, false);
      }
      if (lane_ % 4 == 0) {
        const int64_t target =
            lengths.query_first + (indexed && !padding ? out.index[first + at] : first + at);
        if (params_.lse.data != nullptr) {
          *scalar_at(params_.lse, sequence_, head_, target) = lse;
        }
        if (params_.entropy.data != nullptr) {
          *scalar_at(params_.entropy, sequence_, head_, target) = entropy;
        }
      }
    }
  }

  // The place in out of a query that exists; padding rows have theirs too.
  __device__ __forceinline__ const char* place_of(const HeadRows& out, int32_t row) const {
    HeadRows all = out;
    all.positions = nullptr;
    return all.row(row);
  }

  __device__ __forceinline__ float finish_row(RunningRow row, float& lse, float& entropy) const {
    const ScoreRule& rule = params_.problem.score;
    const float order = params_.entropy_order;
    const float unit = natural_unit();
    float factor = 1;
    float sink = 0;
    bool of_sink = false;  // it is the largest score
    if (rule.sinks != nullptr) {
      sink = rule.sinks[head_ * rule.sink_stride];
      const bool seen = row.top != -infinity();
      const bool counts = sink != -infinity();
      const float behind = fmaf(row.top, unit, -sink);  // the sink behind the largest score
      of_sink = counts && (!seen || behind < 0);
      // From the larger of the two, in base 2.
      const float moved = seen && of_sink ? behind * kLog2E : 0;
      const float x = of_sink ? 0 : -behind * kLog2E;
      factor = seen ? exp2f(moved) : 0;
      row.moment =
          order == 1
              ? factor * (row.moment + moved * row.sum) + (counts ? exp2f(x) * x : 0)
              : (seen ? exp2f(order * moved) * row.moment : 0) + (counts ? exp2f(order * x) : 0);
      row.sum = row.sum * factor + (counts ? exp2f(x) : 0);
    }
    if (!(row.sum > 0)) {
      return row.sum == 0 ? 0 : row.sum;  // NaN stays NaN
    }
    const float logarithm = log2f(row.sum) * kLn2;
    lse = of_sink ? sink + logarithm : fmaf(row.top, unit, logarithm);
    entropy = order == 1 ? logf(row.sum) - row.moment / row.sum * kLn2
                         : (logf(row.moment) - order * logf(row.sum)) / (1 - order);
    return factor / row.sum;
  }

  const ForwardParams& params_;
  typename Shape::Shared& shared_;
  uint32_t queries_, keys_, values_;  // tiles in shared memory
  uint32_t lane_, warp_;
  int32_t tile_, head_, sequence_;
  float sums_[kDim / 8][4];
  RunningRow rows_[2];
};

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kDim > 128 ? 1 : 2)
    attention_forward_kernel(const __grid_constant__ ForwardParams params) {
  extern __shared__ __align__(1024) unsigned char memory[];
  ForwardBlock<Shape>(params, memory).run();
}

}  // namespace flashloom::portable
