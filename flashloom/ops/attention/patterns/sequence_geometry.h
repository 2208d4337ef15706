#pragma once

#include <cstdint>

#include "flashloom/ops/attention/attention.h"
#include "flashloom/ops/attention/patterns/head_geometry.h"

namespace flashloom {

/// An index tensor, by (sequence, head); strides of 0 broadcast.
struct GeometryTable {
  const int32_t* data = nullptr;
  int64_t sequence_stride = 0;
  int64_t head_stride = 0;

  FLASHLOOM_HOST_DEVICE constexpr const int32_t* at(int64_t sequence, int64_t head) const {
    return data == nullptr ? nullptr : data + sequence * sequence_stride + head * head_stride;
  }
};

/// The options' view of lengths and visibility as plain data, which kernels resolve one (sequence,
/// head) at a time. Made on the host from shapes alone; its pointers may be device memory.
struct GeometrySource {
  int32_t sequences = 0;
  int32_t heads = 0;
  int32_t key_heads = 0;
  int32_t max_query = 0;  // S_q, or the bound of packed sequences
  int32_t max_key = 0;
  int32_t total_query = 0;  // T_q of packed tensors
  int32_t total_key = 0;
  const int32_t* cu_query = nullptr;
  const int32_t* cu_key = nullptr;
  const int32_t* used_query = nullptr;
  const int32_t* used_key = nullptr;
  int64_t left = -1;
  int64_t right = -1;
  bool has_offset = false;
  bool has_starts = false;
  int64_t offset = 0;
  int64_t query_start = 0;
  int64_t key_start = 0;
  GeometryTable query_positions;
  GeometryTable key_positions;
  GeometryTable query_count;
  GeometryTable key_count;
  GeometryTable output_index;
  GeometryTable query_buckets;
  GeometryTable key_buckets;
  int32_t buckets = 0;
  bool exclude_self = false;
  bool gated = false;
  int32_t block_rows = 0;
  int32_t block_keys = 0;
  GeometryTable block_offsets, block_entries, block_partial;
  GeometryTable transposed_offsets, transposed_entries, transposed_partial;
  int32_t block_entry_count = 0;
  const uint8_t* bits = nullptr;
};

/// Rows of one sequence in the tensors.
struct SequenceRows {
  int32_t query_first = 0;  // row of q; 0 for batched tensors
  int32_t key_first = 0;
  int32_t query_rows = 0;  // rows of the sequence, padding included
  int32_t key_rows = 0;
  int32_t queries = 0;  // rows in use
  int32_t keys = 0;
  bool faulty = false;  // lengths were out of range and have been clamped
};

namespace detail {

FLASHLOOM_HOST_DEVICE constexpr int32_t clamp_length(int32_t value, int32_t limit, bool& faulty) {
  if (value < 0 || value > limit) {
    faulty = true;
    return value < 0 ? 0 : limit;
  }
  return value;
}

}  // namespace detail

FLASHLOOM_HOST_DEVICE constexpr SequenceRows resolve_rows(const GeometrySource& source,
                                                          int32_t sequence) {
  SequenceRows rows;
  rows.query_rows = source.max_query;
  rows.key_rows = source.max_key;
  if (source.cu_query != nullptr) {
    rows.query_first =
        detail::clamp_length(source.cu_query[sequence], source.total_query, rows.faulty);
    const int32_t end =
        detail::clamp_length(source.cu_query[sequence + 1], source.total_query, rows.faulty);
    rows.query_rows = detail::clamp_length(end - rows.query_first, source.max_query, rows.faulty);
  }
  if (source.cu_key != nullptr) {
    rows.key_first = detail::clamp_length(source.cu_key[sequence], source.total_key, rows.faulty);
    const int32_t end =
        detail::clamp_length(source.cu_key[sequence + 1], source.total_key, rows.faulty);
    rows.key_rows = detail::clamp_length(end - rows.key_first, source.max_key, rows.faulty);
  }
  rows.queries = rows.query_rows;
  rows.keys = rows.key_rows;
  if (source.used_query != nullptr) {
    rows.queries = detail::clamp_length(source.used_query[sequence], rows.query_rows, rows.faulty);
  }
  if (source.used_key != nullptr) {
    rows.keys = detail::clamp_length(source.used_key[sequence], rows.key_rows, rows.faulty);
  }
  return rows;
}

/// The geometry of one (sequence, query head), queries outside.
FLASHLOOM_HOST_DEVICE constexpr HeadGeometry resolve_head(const GeometrySource& source,
                                                          const SequenceRows& rows,
                                                          int32_t sequence, int32_t head) {
  const int32_t key_head = head / (source.heads / source.key_heads);
  HeadGeometry geometry;
  bool faulty = false;
  geometry.outer.count = rows.queries;
  geometry.inner.count = rows.keys;
  if (source.query_count.data != nullptr) {
    geometry.outer.count =
        detail::clamp_length(*source.query_count.at(sequence, head), rows.queries, faulty);
  }
  if (source.key_count.data != nullptr) {
    geometry.inner.count =
        detail::clamp_length(*source.key_count.at(sequence, key_head), rows.keys, faulty);
  }
  if (source.has_starts) {
    geometry.outer.start = source.query_start;
    geometry.inner.start = source.key_start;
  } else {
    geometry.outer.start = source.has_offset
                               ? source.offset
                               : int64_t{geometry.inner.count} - int64_t{geometry.outer.count};
  }
  if (source.query_positions.data != nullptr) {
    geometry.outer.positions = source.query_positions.at(sequence, head) + rows.query_first;
  }
  if (source.key_positions.data != nullptr) {
    geometry.inner.positions = source.key_positions.at(sequence, key_head) + rows.key_first;
  }
  geometry.low = source.left < 0 ? geometry.low : -source.left;
  geometry.high = source.right < 0 ? geometry.high : source.right;
  geometry.exclude_self = source.exclude_self;
  geometry.gated = source.gated;
  if (source.buckets > 0) {
    geometry.buckets = source.buckets;
    geometry.outer.bucket_offsets = source.query_buckets.at(sequence, head);
    geometry.inner.bucket_offsets = source.key_buckets.at(sequence, key_head);
  }
  if (source.block_rows > 0) {
    geometry.outer_block = source.block_rows;
    geometry.inner_block = source.block_keys;
    geometry.bits = source.bits;
    geometry.blocks = {source.block_offsets.at(sequence, head),
                       source.block_entries.at(sequence, head),
                       source.block_partial.at(sequence, head), source.block_entry_count};
    geometry.transposed_blocks = {
        source.transposed_offsets.at(sequence, head), source.transposed_entries.at(sequence, head),
        source.transposed_partial.at(sequence, head), source.block_entry_count};
  }
  return geometry;
}

/// Reads shapes and strides only; expects inputs and options that validation has accepted.
GeometrySource geometry_source(const AttentionInputs& inputs, const AttentionOptions& options);

}  // namespace flashloom
