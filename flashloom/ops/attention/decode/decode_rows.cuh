#pragma once

#include "flashloom/cuda/ptx/cp_async.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/cuda/tile/shared_layout.h"
#include "flashloom/ops/attention/decode/decode_state.cuh"
#include "flashloom/ops/attention/decode/decode_work.cuh"

namespace flashloom::decode {

/// The rows of a warp: what they see, and their queries as operands.
template <class Shape>
__device__ __forceinline__ void load_rows(const Params& params, const Unit& unit, const Work& work,
                                          float* memory, RowState<Shape>& state) {
  const uint32_t row_warp = threadIdx.x / 32 % Shape::kRowWarps;
  const uint32_t lane = threadIdx.x % 32;
  const char* q[2];
  state.all_first = 0;
  state.all_last = work.rows.keys;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const auto index =
        static_cast<int32_t>(unit.row_tile * Shape::kRows + row_warp * 16 + lane / 4 + r * 8);
    const int32_t query = params.group.quotient(index);
    const auto group = static_cast<int32_t>(params.group.divisor);
    const int32_t head = (unit.key_head - query) * group + index;
    Row& row = state.row[r];
    row = {0, 0, 0, 0};
    q[r] = nullptr;
    if (query < work.rows.queries) {
      row.first = work.first_key(query);
      row.last = work.last_key(query);
      q[r] = static_cast<const char*>(params.q) +
             2 * (unit.sequence * params.q_sequence + head * params.q_head +
                  (work.rows.query_first + query) * params.q_row + lane % 4 * 2);
      state.all_first = max(state.all_first, row.first);
      state.all_last = min(state.all_last, row.last);
      if (params.alibi != nullptr) {
        row.position = static_cast<float>(query + work.shift);
        row.slope = params.alibi[unit.sequence * params.alibi_sequence + head * params.alibi_head] *
                    1.4426950408889634f;
      }
    }
  }
  state.all_first = __reduce_max_sync(0xffffffffu, state.all_first);
  state.all_last = __reduce_min_sync(0xffffffffu, state.all_last);
  char* shared_q = reinterpret_cast<char*>(memory) + Shape::kBufferBytes;
  if constexpr (Shape::kWarpgroups && Shape::kQueriesInShared) {
    state.shared_q = cuda::shared_address(shared_q);  // where copy_queries() puts them
  } else {
    if constexpr (Shape::kQueriesInShared) {
      shared_q += row_warp * Shape::kDim * 32;
      state.shared_q = shared_q;
      if (threadIdx.x >= Shape::kTeamThreads) {
        return;  // the first team's warps store what all teams read
      }
    }
#pragma unroll
    for (int c = 0; c < Shape::kDim / 16; ++c) {
      uint32_t words[4];
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const int chunk = c * 2 + part / 2;
        words[part] = q[part % 2] != nullptr && chunk < params.k.chunks
                          ? *reinterpret_cast<const uint32_t*>(q[part % 2] + chunk * 16)
                          : 0;
        if constexpr (!Shape::kQueriesInShared) {
          state.q[c][part] = words[part];
        }
      }
      if constexpr (Shape::kQueriesInShared) {
        reinterpret_cast<uint4*>(shared_q)[c * 32 + lane] = {words[0], words[1], words[2],
                                                             words[3]};
      }
    }
  }
}

/// Starts to copy the queries of a tile of rows to shared memory, a tile of panels, by all of the
/// block's threads. Registers would take them by loads of 4 bytes, of which a warp's meet eight
/// lines each.
template <class Shape>
__device__ __forceinline__ void copy_queries(const Params& params, const Unit& unit,
                                             const Work& work, float* memory) {
  const uint32_t target = cuda::shared_address(memory) + Shape::kBufferBytes;
#pragma unroll 2
  for (uint32_t place = threadIdx.x; place < Shape::kRows * Shape::kChunks;
       place += Shape::kThreads) {
    const uint32_t row = place / Shape::kChunks;
    const uint32_t chunk = place % Shape::kChunks;
    const auto index = static_cast<int32_t>(unit.row_tile * Shape::kRows + row);
    const int32_t query = params.group.quotient(index);
    const int32_t head =
        (unit.key_head - query) * static_cast<int32_t>(params.group.divisor) + index;
    const char* source = static_cast<const char*>(params.q) +
                         2 * (unit.sequence * params.q_sequence + head * params.q_head +
                              (work.rows.query_first + query) * params.q_row) +
                         chunk * 16;
    const bool exists = query < work.rows.queries && static_cast<int32_t>(chunk) < params.k.chunks;
    const uint32_t to = target + cuda::swizzled_offset(row, chunk * 8, Shape::kRows);
    if (params.q_chunks != 0) {
      cuda::cp_async_16(to, source, exists);
      continue;
    }
    uint4 words = {0, 0, 0, 0};
    if (exists) {
      const auto* from = reinterpret_cast<const uint32_t*>(source);
      words = {from[0], from[1], from[2], from[3]};
    }
    *reinterpret_cast<uint4*>(reinterpret_cast<char*>(memory) + (to - target) +
                              Shape::kBufferBytes) = words;
  }
}

}  // namespace flashloom::decode
