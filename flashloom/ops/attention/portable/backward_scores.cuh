#pragma once

#include "flashloom/ops/attention/portable/backward_shape.cuh"

// From S and dP of a tile to P and dS.

namespace flashloom::portable {

/// The entropy's part of dS; `distance` is score - lse in base 2.
__device__ __forceinline__ float entropy_gradient(float p, float distance, float entropy,
                                                  float dentropy, float order) {
  if (dentropy == 0) {
    return 0;
  }
  const float natural = distance * kLn2;
  return order == 1
             ? -p * dentropy * (natural + entropy)
             : dentropy * order / (1 - order) * (expf(order * natural - (1 - order) * entropy) - p);
}

template <class Shape, Side kSide>
class BackwardScores {
 public:
  using Stage = typename Shape::Stage;
  static constexpr int kTiles = Shape::kInner / 8;
  static constexpr bool kKeys = kSide == Side::keys;

  __device__ __forceinline__ BackwardScores(const BackwardParams& params,
                                            typename Shape::Shared& shared)
      : params_(params), shared_(shared) {}

  /// Of a query head, whose rows among all start at `first_row`.
  __device__ __forceinline__ void start(int32_t sequence, int32_t query_head, int32_t first_row,
                                        int32_t inner_size) {
    sequence_ = sequence;
    query_head_ = query_head;
    numbers_at_ = params_.numbers.at(query_head, first_row);
    inner_size_ = inner_size;
  }

  /// Numbers of inner queries.
  __device__ __forceinline__ void load_numbers(const Step& step, int stage) const {
    if constexpr (kKeys) {
      Stage& numbers = shared_.stages[stage];
      const int32_t rows = inner_rows(step);
      const int64_t at = numbers_at_ + step.tile * inner_size_;
      for (int i = static_cast<int>(threadIdx.x); i < Shape::kInner; i += Shape::kThreads) {
        const bool exists = i < rows;
        numbers.lse[i] = exists ? in_units(params_.numbers.lse[at + i]) : infinity();
        numbers.delta[i] = exists ? params_.numbers.delta[at + i] : 0;
        if (params_.numbers.entropy != nullptr) {
          numbers.entropy[i] = exists ? params_.numbers.entropy[at + i] : 0;
          numbers.dentropy[i] = exists ? params_.numbers.dentropy[at + i] : 0;
        }
      }
    }
  }

  /// Numbers of this thread's outer queries.
  __device__ __forceinline__ void load_row_numbers(const ThreadPairs& pairs) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int32_t row = pairs.row(r);
      lse_[r] = row >= 0 ? in_units(params_.numbers.lse[numbers_at_ + row]) : infinity();
      delta_[r] = row >= 0 ? params_.numbers.delta[numbers_at_ + row] : 0;
      if (params_.numbers.entropy != nullptr) {
        entropy_[r] = row >= 0 ? params_.numbers.entropy[numbers_at_ + row] : 0;
        dentropy_[r] = row >= 0 ? params_.numbers.dentropy[numbers_at_ + row] : 0;
      }
    }
  }

  __device__ __forceinline__ void differentiate_tile(float (&p)[kTiles][4], float (&ds)[kTiles][4],
                                                     const ThreadPairs& pairs, const Step& step,
                                                     int stage) const {
    const ScoreRule& rule = params_.problem.score;
    const int32_t first = step.tile * inner_size_;
    const int32_t rows = inner_rows(step);
    if (needs_pairs(rule, geometry(), step) || rule.dropout || params_.numbers.entropy != nullptr) {
      differentiate_pairs(p, ds, pairs, step, stage, first, rows);
    } else {
      differentiate(p, ds, pairs, step, stage, first, rows);
    }
  }

 private:
  __device__ __forceinline__ const HeadGeometry& geometry() const {
    return shared_.walk.geometry();
  }

  __device__ __forceinline__ int32_t inner_rows(const Step& step) const {
    return min(inner_size_, geometry().inner.count - step.tile * inner_size_);
  }

  // The exponent of P in base 2. Scores of some hundreds are rounded to 2^-16 and worse: in f32 the
  // difference, which is small where P is not, is rounded once and only then multiplied by log2 e.
  // Operands of 16 bits round P by far more.
  static constexpr bool kExact = sizeof(typename Shape::T) == 4;

  static __device__ __forceinline__ float in_units(float lse) {
    return kExact ? lse : lse * kLog2E;
  }

  static __device__ __forceinline__ float exponent(float product, float scale, float lse) {
    return kExact ? fmaf(product, scale, -lse) * kLog2E : fmaf(product, scale * kLog2E, -lse);
  }

  // Nothing but the scale, a window and the ends.
  __device__ __forceinline__ void differentiate(float (&p)[kTiles][4], float (&ds)[kTiles][4],
                                                const ThreadPairs& pairs, const Step& step,
                                                int stage, int64_t first, int32_t rows) const {
    const float scale = params_.problem.score.scale;
    constexpr uint32_t kInnerBounds = kKeys ? kRunRowBounds : kRunBounds;
    if ((step.flags & (kInnerBounds | kRunPositions)) != 0 || rows < Shape::kInner) {
      pairs.hide_outside(p, geometry(), first, rows, (step.flags & kRunPositions) != 0,
                         scale < 0 ? infinity() : -infinity());
    }
    const Stage& numbers = shared_.stages[stage];
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int c = pairs.column(n, e);
        const float lse = kKeys ? numbers.lse[c] : lse_[e / 2];
        const float delta = kKeys ? numbers.delta[c] : delta_[e / 2];
        p[n][e] = cuda::exp2_fast(exponent(p[n][e], scale, lse));
        ds[n][e] = p[n][e] * (ds[n][e] - delta);
      }
    }
  }

  // The rare rules, one pair after the other (as in the forward pass).
  __device__ __forceinline__ void differentiate_pairs(float (&p)[kTiles][4], float (&ds)[kTiles][4],
                                                      const ThreadPairs& pairs, const Step& step,
                                                      int stage, int64_t first,
                                                      int32_t rows) const {
    const Problem& problem = params_.problem;
    const HeadScore rule = head_score(problem.score, sequence_, query_head_);
    const Stage& numbers = shared_.stages[stage];
    // Without a description of the tile (entropy alone), positions are not asked for.
    const bool described = needs_pairs(problem.score, geometry(), step) || problem.score.dropout;
    if (!described && ((step.flags & kRunPositions) != 0 || rows < Shape::kInner)) {
      pairs.hide_outside(p, geometry(), first, rows, (step.flags & kRunPositions) != 0,
                         rule.scale < 0 ? infinity() : -infinity());
    }
    float values[4 * kTiles];
    float gradients[4 * kTiles];
#pragma unroll
    for (int i = 0; i < 4 * kTiles; ++i) {
      values[i] = p[i / 4][i % 4];
      gradients[i] = ds[i / 4][i % 4];
    }
#pragma unroll 1
    for (int i = 0; i < 4 * kTiles; ++i) {
      const int r = i / 2 % 2;
      const int c = pairs.column(i / 4, i);
      float score = values[i];
      float scale = rule.scale;
      float slope = 1;
      float factor = 1;
      if (described) {
        const Pair pair(geometry(), step, problem.partial_count, pairs.row(r), first, rows, c);
        score = -infinity();
        scale = 1;
        if (pair.visible) {
          score = final_score(rule, values[i], pair.query, pair.key,
                              pair.key_position - pair.query_position, slope);
          factor = rule.dropout ? dropout_factor(rule, pair.query_position, pair.key_position) : 1;
        }
      }
      const float lse = kKeys ? numbers.lse[c] : r == 0 ? lse_[0] : lse_[1];
      const float distance = exponent(score, scale, lse);
      const float delta = kKeys ? numbers.delta[c] : r == 0 ? delta_[0] : delta_[1];
      const float weight = cuda::exp2_fast(distance);
      float gradient = weight * (factor * gradients[i] - delta);
      if (params_.numbers.entropy != nullptr && distance > -infinity()) {
        const float entropy = kKeys ? numbers.entropy[c] : r == 0 ? entropy_[0] : entropy_[1];
        const float dentropy = kKeys ? numbers.dentropy[c] : r == 0 ? dentropy_[0] : dentropy_[1];
        gradient += entropy_gradient(weight, distance, entropy, dentropy, params_.entropy_order);
      }
      values[i] = weight * factor;
      gradients[i] = gradient * slope;
    }
#pragma unroll
    for (int i = 0; i < 4 * kTiles; ++i) {
      p[i / 4][i % 4] = values[i];
      ds[i / 4][i % 4] = gradients[i];
    }
  }

  const BackwardParams& params_;
  typename Shape::Shared& shared_;
  int32_t sequence_, query_head_, inner_size_;
  int64_t numbers_at_;
  float lse_[2], delta_[2], entropy_[2], dentropy_[2];  // of outer queries
};

}  // namespace flashloom::portable
