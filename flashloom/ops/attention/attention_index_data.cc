#include <fmt/format.h>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/attention_validation.h"
#include "flashloom/ops/attention/patterns/sequence_geometry.h"

namespace flashloom {
namespace {

[[noreturn]] void refuse(std::string_view op, std::string_view name, std::string_view expected,
                         int64_t actual) {
  throw InvalidArgument(op, name, expected, fmt::format("{}", actual));
}

// `data` holds count + 1 offsets.
void check_offsets(std::string_view op, std::string_view name, const int32_t* data, int64_t count,
                   int64_t limit) {
  int64_t previous = 0;
  for (int64_t i = 0; i <= count; ++i) {
    if (data[i] < previous || data[i] > limit) {
      refuse(op, name, fmt::format("ascending offsets in [0, {}]", limit), data[i]);
    }
    previous = data[i];
  }
}

void check_blocks(std::string_view op, std::string_view name, const GeometryTable& offsets,
                  const GeometryTable& entries, const GeometryTable& partial, int64_t outer_blocks,
                  int64_t inner_blocks, int64_t partial_count, int64_t entry_count,
                  int64_t sequence, int64_t head) {
  const int32_t* rows = offsets.at(sequence, head);
  check_offsets(op, name, rows, outer_blocks, entry_count);
  for (int64_t row = 0; row < outer_blocks; ++row) {
    int64_t previous = -1;
    for (int32_t e = rows[row]; e < rows[row + 1]; ++e) {
      const int32_t entry = entries.at(sequence, head)[e];
      if (entry <= previous || entry >= inner_blocks) {
        refuse(op, name, fmt::format("ascending blocks below {}", inner_blocks), entry);
      }
      previous = entry;
      if (partial.data != nullptr &&
          (partial.at(sequence, head)[e] < -1 || partial.at(sequence, head)[e] >= partial_count)) {
        refuse(op, name, fmt::format("-1 or a partial block below {}", partial_count),
               partial.at(sequence, head)[e]);
      }
    }
  }
}

void check_ascending(std::string_view op, std::string_view name, const GeometrySide& side,
                     int32_t buckets) {
  for (int64_t i = 1; side.positions != nullptr && i < side.count; ++i) {
    const bool starts_bucket = buckets > 0 && side.bucket_offsets[bucket_of(side, buckets, i)] == i;
    if (!starts_bucket && side.positions[i] < side.positions[i - 1]) {
      refuse(op, name, "positions that ascend within a bucket", side.positions[i]);
    }
  }
}

}  // namespace

void validate_attention_index_data(std::string_view op, const AttentionInputs& inputs,
                                   const AttentionOptions& options) {
  if (!inputs.q.device.is_cpu()) {
    return;
  }
  const GeometrySource source = geometry_source(inputs, options);
  if (source.cu_query != nullptr) {
    check_offsets(op, "cu_query", source.cu_query, source.sequences, source.total_query);
  }
  if (source.cu_key != nullptr) {
    check_offsets(op, "cu_key", source.cu_key, source.sequences, source.total_key);
  }
  const int64_t partial_count = options.blocks.bits ? options.blocks.bits.dim(0) : 0;
  for (int32_t b = 0; b < source.sequences; ++b) {
    const SequenceRows rows = resolve_rows(source, b);
    if (rows.faulty) {
      refuse(op, "sequences", "lengths within max_query, max_key and the tensors", b);
    }
    if (options.sequences.page_table) {
      const auto* pages = static_cast<const int32_t*>(options.sequences.page_table.data) +
                          b * options.sequences.page_table.stride(0);
      for (int64_t p = 0; p < tile_count(rows.keys, options.sequences.page_size); ++p) {
        if (pages[p] < 0 || pages[p] >= inputs.k.dim(0)) {
          refuse(op, "page_table", fmt::format("pages in [0, {})", inputs.k.dim(0)), pages[p]);
        }
      }
    }
    for (int32_t h = 0; h < source.heads; ++h) {
      const int32_t g = h / (source.heads / source.key_heads);
      const HeadGeometry geometry = resolve_head(source, rows, b, h);
      if (source.query_count.data != nullptr &&
          *source.query_count.at(b, h) != geometry.outer.count) {
        refuse(op, "query_count", fmt::format("a count in [0, {}]", rows.queries),
               *source.query_count.at(b, h));
      }
      if (source.key_count.data != nullptr && *source.key_count.at(b, g) != geometry.inner.count) {
        refuse(op, "key_count", fmt::format("a count in [0, {}]", rows.keys),
               *source.key_count.at(b, g));
      }
      if (source.buckets > 0) {
        check_offsets(op, "query_bucket_offsets", geometry.outer.bucket_offsets, source.buckets,
                      rows.query_rows);
        check_offsets(op, "key_bucket_offsets", geometry.inner.bucket_offsets, source.buckets,
                      rows.key_rows);
      }
      check_ascending(op, "positions.query", geometry.outer, source.buckets);
      check_ascending(op, "positions.key", geometry.inner, source.buckets);
      for (int64_t i = 0; source.output_index.data != nullptr && i < geometry.outer.count; ++i) {
        const int32_t row = source.output_index.at(b, h)[rows.query_first + i];
        if (row < -1 || row >= rows.query_rows) {
          refuse(op, "output_index", fmt::format("-1 or a row below {}", rows.query_rows), row);
        }
      }
      const bool first_use = (b == 0 || source.block_offsets.sequence_stride != 0) &&
                             (h == 0 || source.block_offsets.head_stride != 0);
      if (source.block_rows > 0 && first_use) {
        const int64_t block_rows = tile_count(source.max_query, source.block_rows);
        const int64_t block_columns = tile_count(source.max_key, source.block_keys);
        check_blocks(op, "columns", source.block_offsets, source.block_entries,
                     source.block_partial, block_rows, block_columns, partial_count,
                     source.block_entry_count, b, h);
        if (source.transposed_offsets.data != nullptr) {
          check_blocks(op, "rows", source.transposed_offsets, source.transposed_entries,
                       source.transposed_partial, block_columns, block_rows, partial_count,
                       source.block_entry_count, b, h);
        }
      }
    }
  }
}

}  // namespace flashloom
