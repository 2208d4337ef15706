#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <numbers>
#include <numeric>
#include <random>

#include "flashloom/cuda/error.cuh"
#include "flashloom/cuda/tensor_map.cuh"
#include "flashloom/ops/attention/attention.h"
#include "flashloom/ops/attention/decode/decode_kernel.cuh"
#include "flashloom/ops/attention/sm90/problem.cuh"

namespace flashloom::decode {

/// How a call is cut and where its workspace goes; from host shapes alone.
struct Plan {
  int64_t units, parts, blocks, tiles_block, row_tiles, slot_rows;
  int64_t slot_floats;
  int64_t counter_bytes, slot_bytes;

  int64_t bytes() const { return counter_bytes + slot_bytes; }
};

inline int64_t multiprocessors(const Device& device) {
  int count = 0;
  cuda::check(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device.index),
              "cudaDeviceGetAttribute");
  return count;
}

/// Whether units are cut into equal parts: all have the host's lengths, or the caller says so.
inline bool cuts_units(const AttentionOptions& options) {
  const AttentionSequences& sequences = options.sequences;
  const bool uniform =
      !sequences.cu_query && !sequences.cu_key && !sequences.used_query && !sequences.used_key;
  return uniform || options.execution.splits > 0;
}

template <class Shape>
Plan make_plan(const AttentionInputs& inputs, const AttentionOptions& options) {
  // More parts than this have nothing left to share, and their counts fit 16 bits.
  constexpr int64_t kMaxParts = 4096;
  // Two tiles of keys a team: below that a block costs more than it reads.
  constexpr int64_t kTilesBlock = 2 * Shape::kTeams;
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const GeometrySource source = geometry_source(inputs, options);
  Plan plan = {};
  if (source.key_heads == 0) {
    return plan;
  }
  const int64_t rows = int64_t{source.heads} / source.key_heads * source.max_query;
  plan.row_tiles = ceil_div(rows, Shape::kRows);
  plan.slot_rows = std::min<int64_t>(rows, Shape::kRows);
  plan.units = int64_t{source.sequences} * source.key_heads * plan.row_tiles;
  if (plan.units == 0) {
    return plan;
  }
  int64_t keys = source.max_key;
  if (source.left >= 0 && source.right >= 0) {
    keys = std::min(keys, source.left + source.right + source.max_query);
  }
  const int64_t tiles = plan.units * std::max<int64_t>(1, ceil_div(keys, Shape::kTileKeys));
  // A multiprocessor takes in keys at several times its share of the memory's rate, so blocks need
  // not fill all of them: a few more or fewer are as fast, parts that cross units are not.
  const int64_t filled = std::max<int64_t>(
      1, static_cast<int64_t>(static_cast<float>(multiprocessors(inputs.q.device)) *
                              options.execution.multiprocessor_share));
  plan.tiles_block = kTilesBlock;
  if (cuts_units(options)) {
    const int64_t least = filled / plan.units;
    plan.parts = least * plan.units * 4 >= filled * 3 ? least : least + 1;
    plan.parts = std::min(plan.parts, ceil_div(tiles, plan.units * kTilesBlock));
    if (options.execution.splits > 0) {
      plan.parts = std::min<int64_t>({options.execution.splits, tiles / plan.units, kMaxParts});
    }
    plan.blocks = plan.units * plan.parts;
  } else {
    plan.blocks = std::clamp<int64_t>(ceil_div(tiles, kTilesBlock), 1, filled * Shape::kResident);
  }
  plan.slot_floats = ceil_div(plan.slot_rows * (Shape::kDim + 2), 4) * 4;
  const int64_t slots = plan.parts == 1 ? 0 : plan.parts > 0 ? plan.blocks : 2 * plan.blocks;
  plan.counter_bytes = slots > 0 ? ceil_div(plan.units * 8, 64) * 64 : 0;
  plan.slot_bytes = ceil_div(slots * plan.slot_floats * 4, 64) * 64;
  return plan;
}

/// Key-value heads that lie side by side on the line: as many as leave few blocks without a
/// stretch.
inline int64_t line_lanes(int64_t blocks, int64_t key_heads) {
  int64_t lanes = key_heads;
  while (key_heads % lanes != 0 || blocks / lanes * lanes * 16 < blocks * 15) {
    --lanes;  // ends at 1
  }
  return lanes;
}

/// A number that no counter carries yet, but by chance: 48 bits, not 0.
inline unsigned long long next_nonce() {
  static std::atomic<uint64_t> state =
      (uint64_t{std::random_device()()} << 32) ^ std::random_device()();
  // splitmix64, whose outputs do not repeat in 2^64 calls
  uint64_t x = state.fetch_add(0x9e3779b97f4a7c15u) + 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  x ^= x >> 31;
  return std::max<uint64_t>(1, x >> 16);
}

/// Strides of the first dimension (0 for packed tensors, which have none), heads and rows.
struct Strides {
  int64_t sequence, head, row;

  Strides(const ConstTensorView& view, bool packed)
      : sequence(packed ? 0 : view.strides[0]),
        head(view.strides[packed ? 0 : 1]),
        row(view.strides[packed ? 1 : 2]) {}
};

inline KeyRows key_rows(const ConstTensorView& view, bool packed) {
  const Strides strides(view, packed);
  return {static_cast<const char*>(view.data), strides.sequence * 2, strides.head * 2,
          strides.row * 2, static_cast<int32_t>(view.dim(-1) / 8)};
}

inline Params make_params(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                          const AttentionOptions& options) {
  Params params = {};
  GeometrySource& source = params.source;
  source = geometry_source(inputs, options);
  // Device code adds positions in 64 bits; further away than this is out of sight.
  const auto near = [](int64_t value) {
    return std::clamp<int64_t>(value, -(int64_t{1} << 40), int64_t{1} << 40);
  };
  if (source.has_starts) {
    source.has_offset = true;
    source.offset = near(source.query_start) - near(source.key_start);
  }
  source.offset = near(source.offset);
  source.left = near(source.left);
  source.right = near(source.right);
  const AttentionSequences& sequences = options.sequences;
  const bool packed = static_cast<bool>(sequences.cu_query);
  params.group = Divisor(source.heads / source.key_heads);
  const Strides q(inputs.q, packed);
  params.q = inputs.q.data;
  params.q_sequence = q.sequence;
  params.q_head = q.head;
  params.q_row = q.row;
  params.k = key_rows(inputs.k, static_cast<bool>(sequences.cu_key));
  params.v = key_rows(inputs.v, static_cast<bool>(sequences.cu_key));
  if (sequences.page_table) {
    params.pages = static_cast<const int32_t*>(sequences.page_table.data);
    params.pages_sequence = sequences.page_table.stride(0);
    params.page_size = Divisor(sequences.page_size);
    params.page_count = static_cast<int32_t>(inputs.k.dim(0));
  }
  const Strides out(outputs.out, packed);
  params.out = outputs.out.data;
  params.out_sequence = out.sequence;
  params.out_head = out.head;
  params.out_row = out.row;
  params.out_is_f32 = outputs.out.dtype == DType::f32 ? 1 : 0;
  params.value_dim = static_cast<int32_t>(inputs.v.dim(-1));
  if (outputs.lse) {
    const Strides lse(outputs.lse, packed);
    params.lse = static_cast<float*>(outputs.lse.data);
    params.lse_sequence = lse.sequence;
    params.lse_head = lse.head;
    params.lse_row = lse.row;
  }
  const AttentionScore& score = options.score;
  const float scale =
      score.scale != 0 ? score.scale : 1 / std::sqrt(static_cast<float>(inputs.q.dim(-1)));
  constexpr float kLog2e = std::numbers::log2e_v<float>;
  params.adjusts = score.softcap > 0 || score.alibi_slopes || scale <= 0 ? 1 : 0;
  params.unit = params.adjusts != 0 ? 1 : scale * kLog2e;
  params.unit_natural = params.adjusts != 0 ? std::numbers::ln2_v<float> : scale;
  params.scale = scale * kLog2e;
  params.cap = score.softcap * kLog2e;
  params.cap_scale = score.softcap > 0 ? 2 * kLog2e * scale / score.softcap : 0;
  if (score.alibi_slopes) {
    const bool each = score.alibi_slopes.rank == 2;
    params.alibi = static_cast<const float*>(score.alibi_slopes.data);
    params.alibi_sequence = each ? score.alibi_slopes.stride(0) : 0;
    params.alibi_head = score.alibi_slopes.stride(each ? 1 : 0);
  }
  if (score.sinks) {
    params.sinks = static_cast<const float*>(score.sinks.data);
    params.sinks_head = score.sinks.stride(0);
  }
  params.status = static_cast<int32_t*>(options.execution.status.data);
  return params;
}

/// Rows of the boxes by which the copy engine fetches tiles of `tile_keys` keys: tiles, or what of
/// them lies in one page; 0 where it cannot, and threads copy.
inline int32_t box_rows(const AttentionInputs& inputs, const AttentionSequences& sequences,
                        int32_t tile_keys) {
  for (const ConstTensorView* view : {&inputs.k, &inputs.v}) {
    bool mapped = view->size() > 0;
    for (int i = 0; i + 1 < view->rank; ++i) {
      // Bytes of a stride fit 40 bits; a stride of 0 (one head for all) is none for the engine.
      mapped =
          mapped && view->shape[i] < (int64_t{1} << 31) &&
          (view->shape[i] == 1 || (view->strides[i] > 0 && view->strides[i] < (int64_t{1} << 38)));
    }
    if (!mapped) {
      return 0;
    }
  }
  if (!sequences.page_table) {
    return tile_keys;
  }
  // The swizzle repeats every 8 rows, so boxes start at multiples of 8.
  const auto rows = static_cast<int32_t>(std::gcd<int64_t>(sequences.page_size, tile_keys));
  return rows % 8 == 0 ? rows : 0;
}

template <class Shape>
typename Shape::KernelParams make_kernel_params(const AttentionOutputs& outputs,
                                                const AttentionInputs& inputs,
                                                const AttentionOptions& options) {
  typename Shape::KernelParams params = {};
  static_cast<Params&>(params) = make_params(outputs, inputs, options);
  if constexpr (Shape::kProducer) {
    params.box_rows = box_rows(inputs, options.sequences, Shape::kTileKeys);
    params.keys_packed = inputs.k.rank == 3 ? 1 : 0;
    const auto rows = static_cast<uint32_t>(params.box_rows);
    params.k_map = cuda::make_tile_map(sm90::as_batched(inputs.k), rows);
    params.v_map = cuda::make_tile_map(sm90::as_batched(inputs.v), rows);
  }
  return params;
}

/// Sets up a kernel of a shape; how many of its blocks the device runs at once, asked once.
template <class Shape, auto kKernel>
int64_t blocks_at_once(const Device& device) {
  cuda::check(cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   Shape::kSharedBytes),
              "cudaFuncSetAttribute");
  constexpr int kDevices = 16;
  static std::array<std::atomic<int>, kDevices> known = {};  // and 1
  std::atomic<int> none = 0;
  std::atomic<int>& answer =
      device.index < kDevices ? known[static_cast<size_t>(device.index)] : none;
  if (answer == 0) {
    int count = 0;
    cuda::check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, kKernel, Shape::kThreads,
                                                              Shape::kSharedBytes),
                "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    answer = count + 1;
  }
  return (answer - 1) * multiprocessors(device);
}

/// Launches a kernel of a shape; `together`: all blocks at once or not at all.
template <class Shape, auto kKernel>
void launch_kernel(const Device& device, int64_t blocks, bool together,
                   typename Shape::KernelParams params, cudaStream_t stream, const char* name) {
  // More under way than about 64 KB a multiprocessor, which its share of the memory needs, makes
  // the memory slower.
  params.ahead = Shape::kResident > 1 && blocks > multiprocessors(device) ? 1 : Shape::kStages - 1;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<uint32_t>(blocks));
  config.blockDim = dim3(Shape::kThreads);
  config.dynamicSmemBytes = Shape::kSharedBytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = together ? 1 : 0;
  cuda::check(cudaLaunchKernelEx(&config, kKernel, params), name);
}

template <class Shape>
void launch_decode(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                   std::span<std::byte> workspace, const AttentionOptions& options,
                   cudaStream_t stream) {
  const Plan plan = make_plan<Shape>(inputs, options);
  if (plan.units == 0) {
    return;
  }
  auto params = make_kernel_params<Shape>(outputs, inputs, options);
  params.parts = Divisor(std::max<int64_t>(plan.parts, 1));
  params.row_tile_count = Divisor(plan.row_tiles);
  params.key_heads = Divisor(params.source.key_heads);
  params.tiles_block = static_cast<int32_t>(plan.tiles_block);
  params.row_tiles = static_cast<int32_t>(plan.row_tiles);
  params.slot_rows = static_cast<int32_t>(plan.slot_rows);
  std::byte* memory = workspace.data();
  params.counters = reinterpret_cast<unsigned long long*>(memory);
  params.slots = reinterpret_cast<float*>(memory + plan.counter_bytes);
  params.slot_floats = static_cast<int32_t>(plan.slot_floats);
  params.nonce = next_nonce();
  cuda::prepare_debug(stream);
  const Device& device = inputs.q.device;
  if constexpr ((Shape::kCuts & kParts) != 0) {
    if (plan.parts > 0) {
      constexpr auto kKernel = &attention_decode_parts_kernel<Shape>;
      const bool meets = plan.blocks <= blocks_at_once<Shape, kKernel>(device) && plan.parts > 1;
      params.meets = meets ? 1 : 0;
      launch_kernel<Shape, kKernel>(device, plan.blocks, meets, params, stream,
                                    "attention_decode_parts_kernel");
    }
  }
  if constexpr ((Shape::kCuts & kLine) != 0) {
    if (plan.parts == 0) {
      constexpr auto kKernel = &attention_decode_line_kernel<Shape>;
      const int64_t blocks = std::min(plan.blocks, blocks_at_once<Shape, kKernel>(device));
      const int64_t lanes = line_lanes(blocks, params.source.key_heads);
      params.lanes = Divisor(lanes);
      params.meets = 1;
      launch_kernel<Shape, kKernel>(device, blocks / lanes * lanes, true, params, stream,
                                    "attention_decode_line_kernel");
    }
  }
}

}  // namespace flashloom::decode
