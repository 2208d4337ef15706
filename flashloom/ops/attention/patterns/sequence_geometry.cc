#include "flashloom/ops/attention/patterns/sequence_geometry.h"

namespace flashloom {
namespace {

// Strides of the first two dimensions; sizes of 1 broadcast.
GeometryTable table(const ConstTensorView& view) {
  GeometryTable result;
  if (view) {
    result.data = static_cast<const int32_t*>(view.data);
    result.sequence_stride = view.dim(0) == 1 ? 0 : view.stride(0);
    result.head_stride = view.dim(1) == 1 ? 0 : view.stride(1);
  }
  return result;
}

// Rows of a packed tensor have no sequence dimension: (H, T).
GeometryTable row_table(const ConstTensorView& view, bool packed) {
  if (!view || !packed) {
    return table(view);
  }
  return {static_cast<const int32_t*>(view.data), 0, view.dim(0) == 1 ? 0 : view.stride(0)};
}

const int32_t* pointer(const ConstTensorView& view) {
  return static_cast<const int32_t*>(view.data);
}

}  // namespace

GeometrySource geometry_source(const AttentionInputs& inputs, const AttentionOptions& options) {
  const AttentionSequences& sequences = options.sequences;
  const AttentionPositions& positions = options.positions;
  const AttentionBlocks& blocks = options.blocks;
  const bool packed = static_cast<bool>(sequences.cu_query);
  const bool packed_keys = static_cast<bool>(sequences.cu_key);
  const bool paged = static_cast<bool>(sequences.page_table);
  GeometrySource source;
  source.heads = static_cast<int32_t>(inputs.q.dim(packed ? 0 : 1));
  source.key_heads = static_cast<int32_t>(inputs.k.dim(packed_keys ? 0 : 1));
  source.sequences = static_cast<int32_t>(packed ? sequences.cu_query.dim(0) - 1 : inputs.q.dim(0));
  source.total_query = static_cast<int32_t>(packed ? inputs.q.dim(1) : 0);
  source.total_key = static_cast<int32_t>(packed_keys ? inputs.k.dim(1) : 0);
  source.max_query = static_cast<int32_t>(packed ? sequences.max_query : inputs.q.dim(2));
  source.max_key = static_cast<int32_t>(packed_keys || paged ? sequences.max_key : inputs.k.dim(2));
  source.cu_query = pointer(sequences.cu_query);
  source.cu_key = pointer(sequences.cu_key);
  source.used_query = pointer(sequences.used_query);
  source.used_key = pointer(sequences.used_key);
  source.left = options.visibility.left;
  source.right = options.visibility.right;
  source.has_offset = positions.offset.has_value();
  source.offset = positions.offset.value_or(0);
  source.has_starts = positions.query_start.has_value();
  source.query_start = positions.query_start.value_or(0);
  source.key_start = positions.key_start.value_or(0);
  source.query_positions = row_table(positions.query, packed);
  source.key_positions = row_table(positions.key, packed_keys);
  source.query_count = table(positions.query_count);
  source.key_count = table(positions.key_count);
  source.output_index = row_table(positions.output_index, packed);
  source.query_buckets = table(positions.query_bucket_offsets);
  source.key_buckets = table(positions.key_bucket_offsets);
  source.buckets = positions.query_bucket_offsets
                       ? static_cast<int32_t>(positions.query_bucket_offsets.dim(2) - 1)
                       : 0;
  source.exclude_self = positions.exclude_self;
  source.gated = options.gate.kind != AttentionGate::Kind::none;
  source.block_rows = static_cast<int32_t>(blocks.block_rows);
  source.block_keys = static_cast<int32_t>(blocks.block_keys);
  source.block_offsets = table(blocks.row_offsets);
  source.block_entries = table(blocks.columns);
  source.block_partial = table(blocks.partial);
  source.transposed_offsets = table(blocks.column_offsets);
  source.transposed_entries = table(blocks.rows);
  source.transposed_partial = table(blocks.transposed_partial);
  source.block_entry_count = blocks.columns ? static_cast<int32_t>(blocks.columns.dim(2)) : 0;
  source.bits = static_cast<const uint8_t*>(blocks.bits.data);
  return source;
}

}  // namespace flashloom
