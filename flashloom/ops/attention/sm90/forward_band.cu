#include <algorithm>
#include <optional>

#include "flashloom/ops/attention/sm90/forward_band.cuh"
#include "flashloom/ops/attention/sm90/forward_band_call.cuh"

namespace flashloom::sm90 {
namespace {

// ForwardBandShape: columns, consumer warpgroups, tiles of queries and of keys in shared memory.
template <class T>
using ForwardBand64 = ForwardBandShape<T, 64, 3, 5, 10>;
template <class T>
using ForwardBand128 = ForwardBandShape<T, 128, 2, 3, 5>;

constexpr int64_t kTile = 64;

int64_t floor_divide(int64_t a, int64_t b) {
  return a / b - (a % b < 0 ? 1 : 0);
}

// The position of query 0 less that of key 0, if it is the same for all sequences.
std::optional<int64_t> common_offset(const ForwardCall& call) {
  const AttentionSequences& sequences = call.options.sequences;
  const AttentionPositions& positions = call.options.positions;
  if (positions.query_start) {
    return *positions.query_start - *positions.key_start;
  }
  if (positions.offset) {
    return positions.offset;
  }
  // The default is the keys' number less the queries'.
  const bool packed = sequences.cu_query || sequences.cu_key;
  const bool used = sequences.used_query || sequences.used_key;
  const bool same = sequences.cu_query.data == sequences.cu_key.data &&
                    sequences.used_query.data == sequences.used_key.data;
  const int64_t queries = packed ? sequences.max_query : call.inputs.q.dim(-2);
  const int64_t keys = packed ? sequences.max_key : call.inputs.k.dim(-2);
  return (packed || used) && (!same || queries != keys) ? std::nullopt
                                                        : std::optional(keys - queries);
}

// Tiles of queries of all heads, at most.
int64_t items_of(const ForwardCall& call) {
  const ConstTensorView q = as_batched(call.inputs.q);
  const ConstTensorView& packed = call.options.sequences.cu_query;
  const int64_t tiles =
      packed ? q.dim(2) / kTile + packed.dim(0) : (q.dim(2) + kTile - 1) / kTile * q.dim(0);
  return tiles * q.dim(1);
}

template <class Shape>
void launch(const ForwardCall& call, int32_t shift) {
  const ConstTensorView q = as_batched(call.inputs.q);
  ForwardBandParams params = {};
  params.forward = forward_params(call, kTile);
  const Problem& problem = params.forward.problem;
  const bool packed = problem.cu_query != nullptr;
  params.heads = problem.heads / problem.heads_per_key;
  params.sequences = packed ? 0 : params.forward.row_tiles;
  params.line = packed ? problem.total_query / Shape::kTile + problem.batch
                       : problem.batch * params.sequences;
  params.shift = shift;
  params.group = Divisor(problem.heads_per_key);
  const int64_t items = int64_t{params.line} * problem.heads_per_key;
  if (items == 0 || q.size() == 0) {
    return;
  }
  const int32_t most = multiprocessors(call.options);
  const int64_t columns = std::clamp<int64_t>(most / params.heads, 1, items);
  params.columns = static_cast<int32_t>(columns);
  const int64_t blocks = std::min<int64_t>(most, columns * params.heads);
  const CUtensorMap q_map = cuda::make_tile_map(q, Shape::kTile);
  const CUtensorMap k_map = cuda::make_tile_map(as_batched(call.inputs.k), Shape::kTile);
  const CUtensorMap v_map = cuda::make_tile_map(as_batched(call.inputs.v), Shape::kTile);
  const CUtensorMap out_map = cuda::make_tile_map(as_batched(call.outputs.out), 16);
  auto* kernel = &attention_forward_kernel_band<Shape>;
  cuda::check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   Shape::kSharedBytes),
              "cudaFuncSetAttribute");
  cuda::prepare_debug(call.stream);
  kernel<<<static_cast<uint32_t>(blocks), Shape::kThreads, Shape::kSharedBytes, call.stream>>>(
      params, q_map, k_map, v_map, out_map);
  cuda::check(cudaGetLastError(), "attention_forward_kernel_band");
}

}  // namespace

std::optional<int32_t> forward_band_shift(const ForwardCall& call) {
  const auto& [left, right] = call.options.visibility;
  const AttentionSequences& sequences = call.options.sequences;
  const int64_t dim = std::max(call.inputs.q.dim(-1), call.inputs.v.dim(-1));
  const std::optional<int64_t> offset = common_offset(call);
  if (dim > 128 || left < 0 || right < 0 || left > kBandReach * kTile ||
      right > kBandReach * kTile || !offset || call.inputs.k.size() == 0 ||
      items_of(call) > INT32_MAX / 2 ||  // counted in 32 bits
      static_cast<bool>(sequences.cu_query) != static_cast<bool>(sequences.cu_key)) {
    return std::nullopt;
  }
  // Tile 0 of queries, rows 0 to 63, sees keys from offset - left to 63 + offset + right.
  const int64_t first = floor_divide(*offset - left, kTile);
  const int64_t last = floor_divide(kTile - 1 + *offset + right, kTile);
  return last - first < kBandReach ? std::optional(static_cast<int32_t>(first)) : std::nullopt;
}

bool forward_band_pays(const ForwardCall& call, int32_t shift) {
  const auto& [left, right] = call.options.visibility;
  const int64_t offset = common_offset(call).value_or(0);
  // How far the window falls short of all keys before and behind the diagonals.
  const int64_t before = offset - left - kTile * shift;
  const int64_t behind = kTile * (shift + kBandReach - 1) - offset - right;
  const bool whole = before <= 1 && behind <= 1;
  const bool plain = as_batched(call.inputs.q).dim(1) == as_batched(call.inputs.k).dim(1) &&
                     std::max(call.inputs.q.dim(-1), call.inputs.v.dim(-1)) <= 64;
  return forward_band_always ||
         ((whole || plain) && items_of(call) >= int64_t{8} * device_multiprocessors());
}

template <class T>
void launch_forward_band(const ForwardCall& call, int32_t shift) {
  if (std::max(call.inputs.q.dim(-1), call.inputs.v.dim(-1)) > 64) {
    launch<ForwardBand128<T>>(call, shift);
  } else {
    launch<ForwardBand64<T>>(call, shift);
  }
}

template void launch_forward_band<__nv_bfloat16>(const ForwardCall& call, int32_t shift);
template void launch_forward_band<__half>(const ForwardCall& call, int32_t shift);

}  // namespace flashloom::sm90
