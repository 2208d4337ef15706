#pragma once

#include "flashloom/cuda/tile/shared_layout.h"
#include "flashloom/ops/attention/sm90/backward_shape.cuh"

// Backward attention with heads of up to 256 columns: two kernels that compute the scores each for
// itself, one for dK and dV, one for dQ. Seven products instead of five, but no dQ in memory: sums
// of 256 columns for 64 keys would move 64 KB for every 64 queries. The results are the same bits
// every time.

namespace flashloom::sm90 {

/// dK and dV of 64 keys. One warpgroup computes P and dV, the other dP, dS and dK; the first hands
/// P over through shared memory, in f32: dS of a P that was rounded for dV would be rounded twice.
///   kAdjusts   softcap, ALiBi, dropout, exclude_self
template <class T_, int kDim_, bool kAdjusts_>
struct WideKeysShape {
  using T = T_;
  static constexpr int kDim = kDim_;
  static constexpr int kStages = kDim > 192 ? 2 : 3;
  // Products of the last scores are issued before those of the next: with two buffers a tile must
  // be given back early.
  static constexpr bool kSumsFirst = kStages == 2;
  static constexpr int kKeys = 64;
  static constexpr int kQueries = 64;
  static constexpr int kPanels = kDim / 64;
  static constexpr bool kLists = false;
  static constexpr BackwardTurns kTurns = BackwardTurns::never;
  static constexpr bool kAdjusts = kAdjusts_;
  static constexpr int kThreads = 384;
  static constexpr uint32_t kTileBytes = kQueries * kDim * 2;
  static constexpr uint32_t kRowBytes = kQueries * 4;
  static constexpr uint32_t kWeightBytes = kKeys * kQueries * 4;
  static constexpr uint32_t kBarrierBytes = 256;
  // Barriers, lse and delta, before tiles that start at multiples of 1024.
  static constexpr uint32_t kHeadBytes =
      (kBarrierBytes + 2 * kStages * kRowBytes + 1023) / 1024 * 1024;
  static constexpr uint32_t kSharedBytes =
      kHeadBytes + (2 + 2 * kStages) * kTileBytes + 2 * kWeightBytes + (kAdjusts ? 2 * 512 : 0);
  static_assert(kSharedBytes <= 227 * 1024);
};

template <class Shape>
struct WideKeysBarriers {
  uint64_t k_full, v_full;
  uint64_t q_full[Shape::kStages], q_empty[Shape::kStages];
  uint64_t dout_full[Shape::kStages], dout_empty[Shape::kStages];
  uint64_t weights_full[2], weights_empty[2];
};

template <class Shape>
struct WideKeysShared {
  static_assert(sizeof(WideKeysBarriers<Shape>) <= Shape::kBarrierBytes);

  char* base;

  __device__ __forceinline__ WideKeysBarriers<Shape>& barriers() const {
    return *reinterpret_cast<WideKeysBarriers<Shape>*>(base);
  }

  __device__ __forceinline__ float* lse(uint32_t stage) const {
    return reinterpret_cast<float*>(base + Shape::kBarrierBytes + stage * Shape::kRowBytes);
  }

  __device__ __forceinline__ float* delta(uint32_t stage) const {
    return lse(Shape::kStages + stage);
  }

  __device__ __forceinline__ char* k() const { return base + Shape::kHeadBytes; }

  __device__ __forceinline__ char* v() const { return k() + Shape::kTileBytes; }

  __device__ __forceinline__ char* q(uint32_t stage) const {
    return v() + (1 + stage) * Shape::kTileBytes;
  }

  __device__ __forceinline__ char* dout(uint32_t stage) const { return q(Shape::kStages + stage); }

  __device__ __forceinline__ char* weights(uint32_t buffer) const {
    return q(2 * Shape::kStages) + buffer * Shape::kWeightBytes;
  }

  /// Which elements dropout keeps, a word a thread.
  __device__ __forceinline__ uint32_t* kept(uint32_t buffer) const {
    static_assert(Shape::kAdjusts);
    return reinterpret_cast<uint32_t*>(weights(2)) + 128 * buffer;
  }
};

/// dQ of 128 queries, 64 a warpgroup. Keys are needed twice, for these scores and, a step later,
/// for dQ: with two tiles the next one is on its way while it is waited for. At 256 columns no
/// third one fits, and one of values.
template <class T_, int kDim_, bool kAdjusts_>
struct WideQueriesShape {
  using T = T_;
  static constexpr int kDim = kDim_;
  static constexpr int kQueries = 128;
  static constexpr int kKeys = 64;
  static constexpr int kKeyStages = kDim > 192 ? 2 : 3;
  static constexpr int kValueStages = kDim > 192 ? 1 : 2;
  static constexpr int kPanels = kDim / 64;
  static constexpr bool kAdjusts = kAdjusts_;
  // With two, dQ of the last scores is issued before the next scores, so that a tile is given back
  // early.
  static constexpr bool kSumsFirst = kKeyStages == 2 && !kAdjusts;
  static constexpr int kThreads = 384;
  static constexpr uint32_t kQueryBytes = kQueries * kDim * 2;
  static constexpr uint32_t kKeyBytes = kKeys * kDim * 2;
  static constexpr uint32_t kBarrierBytes = 1024;
  static constexpr uint32_t kSharedBytes =
      kBarrierBytes + 2 * kQueryBytes + (kKeyStages + kValueStages) * kKeyBytes;
};

template <class Shape>
struct WideQueriesBarriers {
  uint64_t q_full, dout_full;
  uint64_t k_full[Shape::kKeyStages], k_empty[Shape::kKeyStages];
  uint64_t v_full[Shape::kValueStages], v_empty[Shape::kValueStages];
};

template <class Shape>
struct WideQueriesShared {
  char* base;

  __device__ __forceinline__ WideQueriesBarriers<Shape>& barriers() const {
    return *reinterpret_cast<WideQueriesBarriers<Shape>*>(base);
  }

  __device__ __forceinline__ char* q() const { return base + Shape::kBarrierBytes; }

  __device__ __forceinline__ char* dout() const { return q() + Shape::kQueryBytes; }

  __device__ __forceinline__ char* k(uint32_t stage) const {
    return dout() + Shape::kQueryBytes + stage * Shape::kKeyBytes;
  }

  __device__ __forceinline__ char* v(uint32_t stage) const { return k(Shape::kKeyStages + stage); }
};

}  // namespace flashloom::sm90
