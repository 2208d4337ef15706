#pragma once

#include <cuda.h>

#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/ldmatrix.cuh"
#include "flashloom/cuda/ptx/mma.cuh"
#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/ops/attention/sm90/backward_start.cuh"
#include "flashloom/ops/attention/sm90/forward_band_produce.cuh"
#include "flashloom/ops/attention/sm90/forward_consumer.cuh"

// Forward attention where the queries of a tile of 64 see keys of three neighbouring tiles: windows
// of up to 64 keys to both sides, or of up to 128 to one. A block walks neighbouring tiles of one
// head, so that each tile of keys and values enters shared memory once, and consumer warpgroups
// take tiles of queries in turn. All scores of a row are there at once: the softmax is exact, in
// one pass. Nothing but inputs and results moves; the results are the same bits every time.
//
//   keys     ... j-2   j-1    j    j+1   j+2 ...     a ring that all warpgroups read
//   group 0           [      tile j     ]
//   group 1                 [     tile j+1    ]
//
// A warp multiplies its 16 rows by itself (mma.sync): of the 192 keys of three tiles these see 144
// at most, which lie at other places for each of the four warps of a tile. A product of all four
// (wgmma) has all 192, and what a warp may skip of them needs code of its own.

namespace flashloom::sm90 {

/// A consumer warp's way through the ring of pairs of keys and values: it waits for every pair and
/// gives it back once, whether it needs it or not, so that no phase of a barrier passes unseen.
template <int kStages>
struct ForwardBandRing {
  uint64_t *full, *empty;
  uint32_t lane;
  uint32_t seen = 0;      // tiles waited for
  uint32_t returned = 0;  // tiles given back

  static __device__ __forceinline__ uint32_t stage(uint32_t tile) {
    return tile % static_cast<uint32_t>(kStages);
  }

  /// Waits for the tiles before `end`.
  __device__ __forceinline__ void see(uint32_t end) {
#pragma unroll 1
    for (; seen < end; ++seen) {
      cuda::mbarrier_wait(&full[stage(seen)], seen / kStages & 1, {"a consumer", "full"});
    }
  }

  /// Gives back the tiles before `end`, which have been seen. The warp has converged.
  __device__ __forceinline__ void give_back(uint32_t end) {
#pragma unroll 1
    for (; returned < end; ++returned) {
      if (lane == 0) {
        cuda::mbarrier_arrive(&empty[stage(returned)]);
      }
    }
  }

  /// Tiles before `end` that only others need.
  __device__ __forceinline__ void pass(uint32_t end) {
    see(end);
    __syncwarp();
    give_back(end);
  }
};

template <class Shape>
struct ForwardBandConsumer {
  using T = typename Shape::T;
  static constexpr int kSteps = Shape::kDim / 16;  // of 16 columns
  static constexpr int kGroup = 16;                // keys
  // A warp's rows are 16 of the tile's: since the first tile of keys is the first that row 0 sees
  // something of and the last one the last of row 63, row 16 w + r sees keys from 16 w + r to
  // 16 w + r + 128 at most, so the warp nine of the twelve groups of keys, from the w-th on.
  static constexpr int kVisible = (kBandReach - 1) * Shape::kTile / kGroup + 1;
  static constexpr int kScores = kVisible * kGroup / 2;

  const ForwardBandParams& params;
  const CUtensorMap* map;
  const ForwardBandShared<Shape>& shared;
  ForwardBandBarriers<Shape>& barriers;
  uint32_t lane;
  int32_t warp_row;  // the first of this warp's of a tile of queries
  ForwardBandRing<Shape::kStages> pairs;
  int32_t owed = -1;  // buffer of queries from which results are being sent

  __device__ __forceinline__ ForwardBandConsumer(const ForwardBandParams& of,
                                                 const CUtensorMap* out,
                                                 const ForwardBandShared<Shape>& memory)
      : params(of),
        map(out),
        shared(memory),
        barriers(memory.barriers()),
        lane(threadIdx.x % 32),
        warp_row(__shfl_sync(0xffffffffu, static_cast<int32_t>(threadIdx.x % 128 / 32 * 16), 0)),
        pairs{barriers.full, barriers.empty, lane} {}

  /// This warp's 16 rows of a tile of queries, as the first operand of a product.
  __device__ __forceinline__ void load_queries(uint32_t (&q)[4 * kSteps], const char* tile) const {
    const uint32_t row = static_cast<uint32_t>(warp_row) + lane % 16;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t words[4];
      cuda::ldmatrix_x4(words,
                        cuda::shared_address(tile) +
                            cuda::swizzled_offset(row, 16 * step + 8 * (lane / 16), Shape::kTile));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        q[4 * step + i] = words[i];
      }
    }
  }

  /// Where the warp's group `number` of keys lies in the three tiles.
  __device__ __forceinline__ uint32_t group_address(const uint32_t (&tiles)[kBandReach],
                                                    int number) const {
    const auto group = static_cast<uint32_t>(number) + static_cast<uint32_t>(warp_row) / kGroup;
    constexpr uint32_t kGroups = Shape::kTile / kGroup;  // of a tile
    const uint32_t tile = group < kGroups ? tiles[0] : group < 2 * kGroups ? tiles[1] : tiles[2];
    return tile + group % kGroups * kGroup * cuda::kPanelRowBytes;
  }

  /// Where chunk `chunk` of eight columns behind column 16 `step` of row `row` of a group lies.
  __device__ __forceinline__ uint32_t chunk_offset(uint32_t row, int step, uint32_t chunk) const {
    const auto first = static_cast<uint32_t>(2 * step % 8);
    return static_cast<uint32_t>(step / 4) * cuda::panel_bytes(Shape::kTile) +
           row * cuda::kPanelRowBytes + ((first + chunk) ^ lane % 8) * 16;
  }

  /// c (16 x 8, an accumulator's part) += a b.
  static __device__ __forceinline__ void multiply(float* c, const uint32_t (&a)[4], uint32_t b0,
                                                  uint32_t b1) {
    float sums[4] = {c[0], c[1], c[2], c[3]};
    cuda::mma_16x8x16<T>(sums, a, b0, b1);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      c[i] = sums[i];
    }
  }

  /// The products of queries and keys that the warp may see.
  __device__ __forceinline__ void find_scores(float (&scores)[kScores],
                                              const uint32_t (&q)[4 * kSteps],
                                              const uint32_t (&keys)[kBandReach]) const {
    // ldmatrix: matrices are keys 0-7 and 8-15 by columns 0-7 and 8-15 of a step.
    const uint32_t row = lane / 16 * 8 + lane % 8;
    const uint32_t chunk = lane / 8 % 2;
#pragma unroll
    for (int group = 0; group < kVisible; ++group) {
      const uint32_t place = group_address(keys, group);
      float* sums = &scores[group * kGroup / 2];
#pragma unroll
      for (int i = 0; i < kGroup / 2; ++i) {
        sums[i] = 0;
      }
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        uint32_t words[4];
        cuda::ldmatrix_x4(words, place + chunk_offset(row, step, chunk));
        const uint32_t a[4] = {q[4 * step], q[4 * step + 1], q[4 * step + 2], q[4 * step + 3]};
        multiply(sums, a, words[0], words[1]);
        multiply(sums + 4, a, words[2], words[3]);
      }
    }
  }

  /// out += weights of group `group` of keys times their values, which lie as far behind the keys
  /// as those of other tiles.
  __device__ __forceinline__ void add_values(float (&out)[Shape::kDim / 2],
                                             const uint32_t (&weights)[4], int group,
                                             const uint32_t (&keys)[kBandReach]) const {
    // Transposed: matrices are keys 0-7 and 8-15 by columns 0-7, then by columns 8-15.
    const uint32_t row = lane / 8 % 2 * 8 + lane % 8;
    const uint32_t chunk = lane / 16;
    const uint32_t place = group_address(keys, group) + Shape::kStages * Shape::kTileBytes;
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t words[4];
      cuda::ldmatrix_x4_transposed(words, place + chunk_offset(row, step, chunk));
      multiply(&out[8 * step], weights, words[0], words[1]);
      multiply(&out[8 * step + 4], weights, words[2], words[3]);
    }
  }

  /// Hides what the rows `row` and `row` + 8 do not see of kCount scores from kFirst on; `key` is
  /// the first of the 64 keys that these lie among.
  template <int kFirst, int kCount>
  __device__ __forceinline__ void mask(float (&scores)[kScores], const Sequence& sequence,
                                       int32_t row, int32_t key) const {
    using Consumer = ForwardConsumer<Shape>;
    const int32_t first = key + 2 * static_cast<int32_t>(lane % 4);
    uint32_t visible[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      visible[half] = Consumer::keys_before(sequence.key_end(row + 8 * half) - first) &
                      ~Consumer::keys_before(sequence.key_begin(row + 8 * half) - first);
    }
#pragma unroll
    for (int i = kFirst; i < kFirst + kCount; ++i) {
      const uint32_t bit = 1u << (i % 32 / 4 * 2 + i % 2);
      scores[i] = (visible[i / 2 % 2] & bit) != 0 ? scores[i] : -INFINITY;
    }
  }

  /// Hides what the warp's rows, from `row` on, do not see; `key` is its first key.
  __device__ __forceinline__ void hide(float (&scores)[kScores], const Sequence& sequence,
                                       int32_t row, int32_t key) const {
    const int32_t own = row + static_cast<int32_t>(lane / 4);
    const int32_t last = key + (kVisible - 1) * kGroup;  // of the last group
    if (sequence.key_begin(row + 15) > key + kGroup || sequence.key_end(row) < last) {
      mask<0, 32>(scores, sequence, own, key);
      mask<32, 32>(scores, sequence, own, key + Shape::kTile);
      mask<64, kScores - 64>(scores, sequence, own, key + 2 * Shape::kTile);
      return;
    }
    // In the middle of a wide band only the first group has keys before it, the last behind it.
    constexpr int kCount = kGroup / 2;
    const auto shift = 2 * static_cast<int32_t>(lane % 4);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int32_t begin = sequence.key_begin(own + 8 * half) - key - shift;
      const int32_t end = sequence.key_end(own + 8 * half) - last - shift;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (i / 2 % 2 == half) {
          const int column = i / 4 * 8 + i % 2;
          float& behind = scores[kScores - kCount + i];
          scores[i] = column >= begin ? scores[i] : -INFINITY;
          behind = column < end ? behind : -INFINITY;
        }
      }
    }
  }

  /// Gives the buffer of the last results back once they have left.
  __device__ __forceinline__ void settle() {
    if (owed >= 0 && lane == 0) {
      cuda::bulk_wait_read<0>();
      cuda::mbarrier_arrive(&barriers.q_empty[owed]);
    }
    owed = -1;
  }

  /// The item `item` of a segment, the block's `number`th; of its tiles of keys the first is the
  /// block's `key`th.
  __device__ __forceinline__ void run_item(const ForwardBandSegment& segment, int32_t item,
                                           uint32_t number, uint32_t key) {
    using namespace cuda;
    const int32_t group = params.forward.problem.heads_per_key;
    const int32_t tile = item / group;
    const Sequence& sequence = segment.sequence;
    const int32_t row = tile * Shape::kTile;
    const int32_t own_row = row + warp_row + static_cast<int32_t>(lane / 4);
    pairs.pass(key);
    const uint32_t stage = number % static_cast<uint32_t>(Shape::kQStages);
    mbarrier_wait(&barriers.q_full[stage], number / Shape::kQStages & 1, {"a consumer", "q_full"});
    char* queries = shared.queries(stage);
    uint32_t q[4 * kSteps];
    load_queries(q, queries);
    settle();
    pairs.see(key + kBandReach);

    uint32_t keys[kBandReach];
#pragma unroll
    for (int i = 0; i < kBandReach; ++i) {
      keys[i] = shared_address(shared.keys(pairs.stage(key + i)));
    }
    float scores[kScores];
    find_scores(scores, q, keys);
    hide(scores, sequence, row + warp_row, (tile + params.shift) * Shape::kTile + warp_row);
    float highest[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};  // two chains a row
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      float& chain = highest[i / 2 % 2 + 2 * (i % 2)];
      chain = fmaxf(chain, scores[i]);
    }
    float maximum[2], sum[2], shift[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      maximum[half] = fmaxf(highest[half], highest[half + 2]);
      maximum[half] = fmaxf(maximum[half], __shfl_xor_sync(0xffffffffu, maximum[half], 1));
      maximum[half] = fmaxf(maximum[half], __shfl_xor_sync(0xffffffffu, maximum[half], 2));
      shift[half] = maximum[half] == -INFINITY ? 0 : maximum[half] * params.forward.scale_log2;
      sum[half] = 0;
    }
    ForwardConsumer<Shape> rows;
#pragma unroll
    for (float& value : rows.out) {
      value = 0;
    }
    const float scale = params.forward.scale_log2;
#pragma unroll
    for (int group = 0; group < kVisible; ++group) {
      uint32_t weights[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* score = &scores[group * kGroup / 2 + 2 * i];
        const float even = exp2_fast(fmaf(score[0], scale, -shift[i % 2]));
        const float odd = exp2_fast(fmaf(score[1], scale, -shift[i % 2]));
        weights[i] = pack2<T>(even, odd);
        sum[i % 2] += even + odd;
      }
      add_values(rows.out, weights, group, keys);
      if (group % 3 == 2) {
        // Zero, but ptxas cannot know: else it scales all scores first, and spills.
        shift[0] = fmaf(sum[0], 0.0f, shift[0]);
        shift[1] = fmaf(sum[1], 0.0f, shift[1]);
      }
    }
    ForwardWork work = {};
    const int32_t head = item - tile * group;
    work.tile = {segment.batch, segment.head * group + head, row};
    work.sequence = sequence;
    work.lse = segment.lse + head * params.forward.lse_head;
    float inverse[2];
    rows.finish_rows(params.forward, work, own_row, lane, maximum, sum, inverse);
    __syncwarp();
    // Up to the first tile of the next item's keys; another segment needs none of these.
    const int32_t following = item + Shape::kGroups;
    pairs.give_back(key + static_cast<uint32_t>(following < segment.end
                                                    ? min(following / group - tile, kBandReach)
                                                    : kBandReach));
    rows.clear_empty(inverse);
    rows.rescale(inverse);
    send(rows, work, queries, stage);
  }

  /// Results leave from the place of the queries: the warp has read its rows.
  __device__ __forceinline__ void send(ForwardConsumer<Shape>& rows, const ForwardWork& work,
                                       char* queries, uint32_t stage) {
    using namespace cuda;
    constexpr uint32_t kPanel = panel_bytes(Shape::kTile);
    const uint32_t place =
        shared_address(queries) + static_cast<uint32_t>(warp_row) * kPanelRowBytes;
    rows.template stage<0, Shape::kPanels>(place, kPanel, lane);
    fence_async_shared();
    __syncwarp();
    const int32_t first = work.tile.row + warp_row;
    const bool packed = params.forward.problem.cu_query != nullptr;
    if (packed && first + 16 > work.sequence.query_rows) {
      copy_rows<T>(params.forward, work, first, 0, Shape::kPanels, place, kPanel, lane);
    } else if (lane == 0) {
#pragma unroll
      for (int p = 0; p < Shape::kPanels; ++p) {
        tma_store_4d(map, place + p * kPanel, p * 64, work.sequence.query_first + first,
                     work.tile.head, packed ? 0 : work.tile.batch);
      }
      bulk_commit();
    }
    __syncwarp();
    owed = static_cast<int32_t>(stage);
  }

  /// Every kGroups-th item, from `number` on.
  __device__ __forceinline__ void run(uint32_t number) {
    // Shuffles tell the compiler that warps do not diverge on these.
    const auto uniform = [](auto value) { return __shfl_sync(0xffffffffu, value, 0); };
    const int32_t group = params.forward.problem.heads_per_key;
    for (ForwardBandWalk walk;; walk.slot.advance()) {
      const ForwardBandSegment& segment = walk.wait(barriers, "a consumer");
      const int32_t first = uniform(segment.first);
      const int32_t end = uniform(segment.end);
      if (first == end) {
        pairs.pass(segment.key_number);
        return;
      }
      // From an item's number among the block's to its own, and from a tile to that of its keys.
      const int32_t to_item = first - static_cast<int32_t>(uniform(segment.number));
      const uint32_t to_key = uniform(segment.key_number) - static_cast<uint32_t>(first / group);
      for (int32_t item; (item = static_cast<int32_t>(number) + to_item) < end;
           number += Shape::kGroups) {
        run_item(segment, item, number, to_key + static_cast<uint32_t>(item / group));
      }
      __syncwarp();
      if (lane == 0) {
        walk.release(barriers);
      }
    }
  }
};

template <class Shape>
__global__ void __launch_bounds__(Shape::kThreads, 1)
    attention_forward_kernel_band(const __grid_constant__ ForwardBandParams params,
                                  const __grid_constant__ CUtensorMap q,
                                  const __grid_constant__ CUtensorMap k,
                                  const __grid_constant__ CUtensorMap v,
                                  const __grid_constant__ CUtensorMap out) {
  using namespace cuda;
  extern __shared__ __align__(1024) char memory[];
  const ForwardBandShared<Shape> shared{memory};
  ForwardBandBarriers<Shape>& barriers = shared.barriers();
  if (threadIdx.x == 0) {
    prefetch_tensor_map(&q);
    prefetch_tensor_map(&k);
    prefetch_tensor_map(&v);
    prefetch_tensor_map(&out);
    constexpr uint32_t kWarps = 4 * Shape::kGroups;
    init_ring(barriers.q_full, barriers.q_empty, 1, 4);
    init_ring(barriers.full, barriers.empty, 1, kWarps);
    // The thread that loads, the warp that clears, and the consumers read segments.
    init_ring(barriers.segment_full, barriers.segment_empty, 1, kWarps + 2);
    for (uint64_t& barrier : barriers.border) {
      mbarrier_init(&barrier, 1);
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
      forward_band_find<Shape>(params, barriers);
    } else if (warp == 3) {
      forward_band_clear<Shape>(shared);
    } else if (threadIdx.x == 32) {
      forward_band_load<Shape>(params, &q, &k, &v, shared);
    }
  } else {
    register_limit_raise<Shape::kConsumerRegisters>();
    ForwardBandConsumer<Shape>(params, &out, shared).run(static_cast<uint32_t>(warpgroup - 1));
    // Shared memory must outlive the copies out of it.
    bulk_wait<0>();
  }
}

}  // namespace flashloom::sm90
