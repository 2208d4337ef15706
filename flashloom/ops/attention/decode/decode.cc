#include "flashloom/ops/attention/decode/decode.h"

#include <fmt/format.h>

#include <limits>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/patterns/sequence_geometry.h"
#include "flashloom/ops/attention/sm90/refusal.h"

namespace flashloom::decode {
namespace {

// Rows of `width` columns that start at multiples of `bytes`.
std::string rows_refusal(const char* name, const ConstTensorView& view, DType dtype,
                         int64_t bytes) {
  if (view.dtype != dtype) {
    return fmt::format("{} in {} beside q in {}", name, dtype_name(view.dtype), dtype_name(dtype));
  }
  if (view.dim(-1) % 8 != 0 || view.dim(-1) > 256) {
    return fmt::format("{} with rows of {}", name, view.dim(-1));
  }
  bool aligned = reinterpret_cast<uintptr_t>(view.data) % static_cast<uintptr_t>(bytes) == 0;
  for (int i = 0; i + 1 < view.rank; ++i) {
    aligned = aligned && (view.shape[i] <= 1 || view.strides[i] * 2 % bytes == 0);
  }
  return aligned ? ""
                 : fmt::format("{} whose rows do not start at multiples of {} bytes", name, bytes);
}

}  // namespace

std::string attention_decode_refusal(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                                     const AttentionOptions& options) {
  const DType dtype = inputs.q.dtype;
  if (dtype != DType::bf16 && dtype != DType::f16) {
    return fmt::format("{} storage", dtype_name(dtype));
  }
  // Queries are read four bytes at a time, keys and values 16.
  for (std::string refusal :
       {rows_refusal("q", inputs.q, dtype, 4), rows_refusal("k", inputs.k, dtype, 16),
        rows_refusal("v", inputs.v, dtype, 16)}) {
    if (!refusal.empty()) {
      return refusal;
    }
  }
  if (outputs.out.dtype != dtype && outputs.out.dtype != DType::f32) {
    return fmt::format("out in {} beside q in {}", dtype_name(outputs.out.dtype),
                       dtype_name(dtype));
  }
  const GeometrySource source = geometry_source(inputs, options);
  if (source.max_query > kMaxQueries) {
    return fmt::format("{} queries a sequence", source.max_query);
  }
  // Tiles of 16 keys by 16 rows, one behind the other, are counted in 32 bits; a unit takes up to
  // kPieceTiles more.
  constexpr int64_t kPieceTiles = 64;
  const int64_t tiles = (tile_count(source.max_key, 16) + kPieceTiles) * source.sequences *
                        (source.heads * tile_count(source.max_query, 16) + source.key_heads);
  if (tiles > std::numeric_limits<int32_t>::max()) {
    return fmt::format("{} tiles of keys", tiles);
  }
  const AttentionPositions& positions = options.positions;
  return sm90::first_used({
      {"explicit positions", positions.query || positions.key || positions.query_count ||
                                 positions.key_count || positions.output_index},
      {"buckets", positions.query_bucket_offsets || positions.key_bucket_offsets},
      {"exclude_self", positions.exclude_self},
      {"a block mask", options.blocks.block_rows != 0},
      {"a gate", options.gate.kind != AttentionGate::Kind::none},
      {"a bias", static_cast<bool>(options.score.bias)},
      {"dropout", options.dropout.probability != 0},
      {"8-bit scales", options.fp8.q_scale || options.fp8.k_scale || options.fp8.v_scale ||
                           options.fp8.out_scale || options.fp8.amax_out},
      {"the entropy output", static_cast<bool>(outputs.entropy)},
      {"lse in f64", outputs.lse && outputs.lse.dtype != DType::f32},
      {"sinks in f64", options.score.sinks && options.score.sinks.dtype != DType::f32},
      {"ALiBi slopes in f64",
       options.score.alibi_slopes && options.score.alibi_slopes.dtype != DType::f32},
  });
}

}  // namespace flashloom::decode
