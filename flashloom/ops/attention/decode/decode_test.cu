#include "flashloom/ops/attention/decode/decode_params.cuh"
#include "flashloom/ops/attention/decode/decode_test_fixture.cuh"

// Decoding on a GPU against the float64 reference: shapes, lengths, pages.

namespace flashloom {
namespace {

using decode_test::AttentionDecodeGpu;
using decode_test::DecodeCase;

TEST(AttentionDecodeDivisor, DividesExactly) {
  for (const int64_t divisor :
       {1, 2, 3, 5, 7, 8, 12, 71, 100, 127, 128, 129, 4096, 65537, (1 << 30) - 1, 1 << 30}) {
    const Divisor fast(divisor);
    for (const int64_t multiple : {0, 1, 2, 3, 1000, 12345, 1 << 20, 1 << 30}) {
      for (const int64_t rest : {-1, 0, 1}) {
        const int64_t n = std::clamp<int64_t>(multiple * divisor + rest, 0, 0x7fffffff);
        ASSERT_EQ(fast.quotient(static_cast<int32_t>(n)), n / divisor) << n << " / " << divisor;
      }
    }
    ASSERT_EQ(fast.quotient(0x7fffffff), 0x7fffffff / divisor) << divisor;
  }
}

TEST_F(AttentionDecodeGpu, EqualsTheReferenceAtEveryHeadDimension) {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    for (const int64_t dim : {8, 40, 64, 72, 96, 128, 136, 192, 200, 256}) {
      for (const int64_t queries : {1, 3, 9}) {
        SCOPED_TRACE(std::string(dtype_name(dtype)) + " " + std::to_string(dim) + " " +
                     std::to_string(queries));
        check({.queries = queries, .keys = 777, .dim = dim, .dtype = dtype});
      }
    }
  }
}

TEST_F(AttentionDecodeGpu, EqualsTheReferenceForEveryGroup) {
  for (const auto& [heads, key_heads] :
       {std::pair<int64_t, int64_t>{1, 1}, {3, 3}, {6, 2}, {8, 1}, {32, 4}, {71, 1}}) {
    for (const int64_t queries : {1, 2, 5, 16}) {
      SCOPED_TRACE(std::to_string(heads) + " on " + std::to_string(key_heads) + ", " +
                   std::to_string(queries));
      check({.heads = heads, .key_heads = key_heads, .queries = queries, .keys = 403, .dim = 64});
    }
  }
}

TEST_F(AttentionDecodeGpu, EqualsTheReferenceAtEveryLength) {
  for (const int64_t keys : {0, 1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 1000, 4099}) {
    for (const int64_t queries : {1, 4, 13}) {
      SCOPED_TRACE(std::to_string(keys) + " " + std::to_string(queries));
      check({.queries = queries, .keys = keys});
    }
  }
}

// Rows and keys around the borders of tiles of 64 rows and of 32 or 64 keys, whole and in parts.
TEST_F(AttentionDecodeGpu, TilesOfManyRowsAtEveryBorder) {
  const int64_t keys[] = {1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 191, 193, 449};
  for (const int64_t dim : {64, 80, 128, 192, 256}) {
    size_t next = static_cast<size_t>(dim / 8);
    for (const int64_t rows : {17, 31, 32, 33, 48, 63, 64, 65, 128, 129}) {
      for (int i = 0; i < 3; ++i) {
        const int64_t length = keys[next++ % std::size(keys)];
        SCOPED_TRACE(std::to_string(dim) + ", " + std::to_string(rows) + " rows, " +
                     std::to_string(length) + " keys");
        DecodeCase description = {
            .heads = rows, .key_heads = 1, .keys = length, .dim = dim, .out_dtype = DType::f32};
        check(description);
        description.options.execution.splits = 3;
        description.used_key = {static_cast<int32_t>(length), static_cast<int32_t>(length / 2)};
        check(description);
      }
    }
  }
}

TEST_F(AttentionDecodeGpu, KeysBehindUsedLengthsAreInvisible) {
  const std::vector<int32_t> used = {0, 1, 15, 16, 17, 47, 48, 49, 127, 128, 129, 300};
  for (const int64_t page_size : {0, 1, 7, 16, 64}) {
    for (const int64_t queries : {1, 6}) {
      SCOPED_TRACE(std::to_string(page_size) + " " + std::to_string(queries));
      check({.batch = 12, .queries = queries, .page_size = page_size, .used_key = used});
    }
  }
}

TEST_F(AttentionDecodeGpu, ManySequencesOfAnyLength) {
  RandomSequence numbers(11, RandomStream::test);
  for (const int64_t batch : {33, 97}) {
    std::vector<int32_t> used(static_cast<size_t>(batch));
    for (int32_t& length : used) {
      length = std::min(500, static_cast<int32_t>(std::fabs(numbers.normal()) * 150));
    }
    check({.batch = batch, .heads = 4, .key_heads = 2, .keys = 500, .dim = 64, .used_key = used});
    check({.batch = batch,
           .heads = 24,
           .key_heads = 1,
           .keys = 500,
           .dim = 64,
           .page_size = 32,
           .used_key = used});
  }
}

// Key-value heads side by side on the line: all, some of them, or, of few tiles, none.
TEST_F(AttentionDecodeGpu, HeadsSideBySide) {
  for (const int64_t key_heads : {2, 3, 7, 12, 40, 131}) {
    for (const int64_t queries : {1, 9}) {
      for (const int32_t longest : {40, 900}) {
        SCOPED_TRACE(std::to_string(key_heads) + " heads, " + std::to_string(queries) + " queries");
        check({.batch = 5,
               .heads = 2 * key_heads,
               .key_heads = key_heads,
               .queries = queries,
               .keys = 900,
               .dim = key_heads > 12 ? 64 : 128,
               .used_key = {longest, 0, longest / 3, longest, 17}});
      }
    }
  }
}

// Blocks share units of 64 rows: each joins more items than it has threads.
TEST_F(AttentionDecodeGpu, StretchesOfManyRows) {
  for (const int64_t dim : {64, 72, 128, 192, 256}) {
    for (const int64_t page_size : {0, 24}) {
      SCOPED_TRACE(std::to_string(dim) + " " + std::to_string(page_size));
      check({.batch = 7,
             .heads = 4,
             .key_heads = 1,
             .queries = 16,
             .keys = 3000,
             .dim = dim,
             .page_size = page_size,
             .used_key = {3000, 1, 640, 2999, 0, 129, 1500}});
    }
  }
}

// A block's shared memory holds the lengths of 24,576 sequences at 128 columns.
TEST_F(AttentionDecodeGpu, MoreSequencesThanABlockKeeps) {
  for (const int64_t batch : {24'576, 24'577}) {
    std::vector<int32_t> used(static_cast<size_t>(batch));
    for (size_t i = 0; i < used.size(); ++i) {
      used[i] = static_cast<int32_t>(i * 7 % 4);
    }
    check({.batch = batch, .heads = 1, .key_heads = 1, .keys = 3, .used_key = used});
  }
}

TEST_F(AttentionDecodeGpu, PagesOfAnySize) {
  for (const int64_t page_size : {1, 2, 3, 8, 15, 16, 17, 24, 48, 64, 100, 128, 4096}) {
    for (const int64_t keys : {1, 130, 1025}) {
      SCOPED_TRACE(std::to_string(page_size) + " " + std::to_string(keys));
      check({.keys = keys, .page_size = page_size});
      check({.queries = 16, .keys = keys, .dim = 96, .page_size = page_size});
    }
  }
}

}  // namespace
}  // namespace flashloom
