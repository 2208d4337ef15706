#include <algorithm>
#include <utility>

#include "cli/attend_case.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/philox.h"

// Block masks, dropped tokens and hash buckets of `flashloom attend`.

namespace flashloom::cli {

// Blocks are kept by chance; partial ones keep each of their pairs by chance.
void AttendCase::make_blocks() {
  if (!flags_.density) {
    return;
  }
  const int64_t max_query = packed_ ? options_.sequences.max_query : query_rows_;
  const int64_t max_key = packed_ ? options_.sequences.max_key : key_rows_;
  const int64_t height = tile_count(max_query, flags_.block_rows);
  const int64_t width = tile_count(max_key, flags_.block_keys);
  RandomSequence random(seed_ + 20, RandomStream::test);
  constexpr int32_t kAbsent = -2;
  std::vector<int32_t> kinds(static_cast<size_t>(height * width), kAbsent);
  int32_t partials = 0;
  int64_t entries = 0;
  for (int32_t& kind : kinds) {
    if (random.uniform() < *flags_.density) {
      kind = random.uniform() < flags_.partial ? partials++ : -1;
      ++entries;
    }
  }
  AttentionBlocks& blocks = options_.blocks;
  blocks.block_rows = flags_.block_rows;
  blocks.block_keys = flags_.block_keys;
  const auto list = [&](bool transposed, ConstTensorView& offsets, ConstTensorView& indices,
                        ConstTensorView& partial) {
    const int64_t outer = transposed ? width : height;
    const int64_t inner = transposed ? height : width;
    std::vector<int32_t> starts = {0};
    std::vector<int32_t> columns;
    std::vector<int32_t> bits;
    for (int64_t o = 0; o < outer; ++o) {
      for (int64_t i = 0; i < inner; ++i) {
        const int32_t kind = kinds[static_cast<size_t>(transposed ? i * width + o : o * width + i)];
        if (kind != kAbsent) {
          columns.push_back(static_cast<int32_t>(i));
          bits.push_back(kind);
        }
      }
      starts.push_back(static_cast<int32_t>(columns.size()));
    }
    offsets = keep(AttendTensor::integers({1, 1, outer + 1}, starts));
    indices = keep(AttendTensor::integers({1, 1, entries}, columns));
    if (partials > 0) {
      partial = keep(AttendTensor::integers({1, 1, entries}, bits));
    }
  };
  list(false, blocks.row_offsets, blocks.columns, blocks.partial);
  list(true, blocks.column_offsets, blocks.rows, blocks.transposed_partial);
  if (partials > 0) {
    AttendTensor bits(DType::u8, {partials, flags_.block_rows, (flags_.block_keys + 7) / 8});
    auto* bytes = bits.view().as<uint8_t>();
    std::generate_n(bytes, bits.view().size(), [&] { return static_cast<uint8_t>(random.bits()); });
    blocks.bits = keep(std::move(bits));
  }
}

// Rows that survive dropping, or rows sorted by hash bucket; both in the order of their positions.
void AttendCase::make_positions() {
  AttentionPositions& positions = options_.positions;
  positions.exclude_self = flags_.exclude_self;
  if (flags_.drop == 0 && flags_.buckets == 0) {
    return;
  }
  const int64_t buckets = std::max<int64_t>(flags_.buckets, 1);
  // Dropping keeps one row of 1 / (1 - drop) positions; buckets hold every position once.
  RandomSequence random(seed_ + 30, RandomStream::test);
  const auto fill = [&](int64_t heads, int64_t count, ConstTensorView& view,
                        ConstTensorView& offsets) {
    std::vector<int32_t> all;
    std::vector<int32_t> starts;
    for (int64_t n = 0; n < sequences_ * heads; ++n) {
      std::vector<std::vector<int32_t>> sorted(static_cast<size_t>(buckets));
      double position = 0;
      for (int64_t i = 0; i < count; ++i) {
        sorted[random.below(static_cast<uint32_t>(buckets))].push_back(
            static_cast<int32_t>(position));
        position += 1 + (flags_.drop > 0 && flags_.drop < 1
                             ? 2 * random.uniform() * flags_.drop / (1 - flags_.drop)
                             : 0);
      }
      int32_t used = 0;
      for (const auto& bucket : sorted) {
        starts.push_back(used);
        all.insert(all.end(), bucket.begin(), bucket.end());
        used += static_cast<int32_t>(bucket.size());
      }
      starts.push_back(used);
    }
    view = keep(AttendTensor::integers({sequences_, heads, count}, all));
    if (flags_.buckets > 0) {
      offsets = keep(AttendTensor::integers({sequences_, heads, buckets + 1}, starts));
    }
  };
  fill(flags_.heads, query_rows_, positions.query, positions.query_bucket_offsets);
  fill(key_heads_, key_rows_, positions.key, positions.key_bucket_offsets);
}

}  // namespace flashloom::cli
