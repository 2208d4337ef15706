#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <random>

#include "flashloom/cuda/error.cuh"
#include "flashloom/ops/attention/attention.h"
#include "flashloom/ops/attention/decode/decode_call.cuh"
#include "flashloom/ops/attention/decode/decode_kernel.cuh"
#include "flashloom/ops/attention/decode/decode_plan.cuh"

namespace flashloom::decode {

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
