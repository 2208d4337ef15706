#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "flashloom/ops/attention/attention_test_contract.h"
#include "flashloom/ops/attention/attention_test_device.cuh"
#include "flashloom/ops/attention/attention_test_run.cuh"

// Packed documents in the backward kernels that sum dQ in memory: up to 128 columns and more than
// 512 keys in the longest one, whose tiles of keys blocks take in an order that the device works
// out.

namespace flashloom {
namespace {

using attention_test::ContractCase;
using attention_test::DeviceExecutor;
using attention_test::expect_sm90_law;
using attention_test::fresh_seed;
using attention_test::Tensor;

/// Offsets of documents of these lengths.
std::vector<int32_t> offsets_of(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> offsets = {0};
  for (const int32_t length : lengths) {
    offsets.push_back(offsets.back() + length);
  }
  return offsets;
}

/// Lengths around every border of a tile (80, 96 and 128 queries, 128 keys), and a long one.
std::vector<int32_t> draw_lengths(RandomSequence& random, int count) {
  constexpr int32_t kBorders[] = {0, 1, 79, 80, 81, 95, 96, 97, 127, 128, 129, 160, 192, 256, 257};
  std::vector<int32_t> lengths;
  for (int i = 0; i < count; ++i) {
    lengths.push_back(random.below(3) == 0 ? static_cast<int32_t>(random.below(400))
                                           : kBorders[random.below(std::size(kBorders))]);
  }
  lengths[random.below(static_cast<uint32_t>(count))] =
      513 + static_cast<int32_t>(random.below(300));
  return lengths;
}

ContractCase packed_case(const std::string& name, RandomSequence& random, int64_t dim,
                         const std::vector<int32_t>& query_lengths,
                         const std::vector<int32_t>& key_lengths) {
  ContractCase c;
  c.name = name;
  c.call = {.batch = 1,
            .heads = 4,
            .key_heads = 2,
            .dim = dim,
            .value_dim = dim,
            .dtype = random.below(2) == 0 ? DType::bf16 : DType::f16,
            .seed = random.below(1u << 30)};
  c.call.packed_queries = offsets_of(query_lengths);
  c.call.packed_keys = offsets_of(key_lengths);
  c.call.queries = c.call.packed_queries.back();
  c.call.keys = c.call.packed_keys.back();
  c.call.options.execution.deterministic = random.below(2) == 0;
  c.name += c.call.options.execution.deterministic ? ", in turn" : "";
  return c;
}

TEST(BackwardPacked, DocumentsOfAnyLengthHoldTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  RandomSequence random(fresh_seed(), RandomStream::test);
  std::vector<ContractCase> cases;
  for (const int64_t dim : {40, 64, 72, 96, 128}) {
    for (int i = 0; i < 5; ++i) {
      // More than the 32 that a warp looks at in one go.
      const std::vector<int32_t> lengths = draw_lengths(random, i == 0 ? 45 : 7);
      const bool others = i == 1;  // keys of other lengths than queries
      ContractCase c =
          packed_case("packed", random, dim, lengths, others ? draw_lengths(random, 7) : lengths);
      c.call.options.visibility.right = i == 2 ? -1 : 0;
      if (i != 1 && i != 2) {
        c.call.key_heads = i == 3 ? 4 : c.call.key_heads;  // late keys first, in turn
      }
      if (i == 1) {  // and heads enough for rows and sums beside the tiles
        c.call.key_heads = 4;
        c.call.options.execution.deterministic = false;
        c.name = "packed";
      }
      if (i % 2 == 1) {  // blocks take many tiles of keys each
        c.call.options.execution.multiprocessor_share = 0.02F;
      }
      if (i == 4) {
        c.call.gradient_dtype = DType::f32;
      }
      c.name += ", " + std::to_string(lengths.size()) + " documents, " +
                std::to_string(c.call.queries) + " x " + std::to_string(c.call.keys);
      cases.push_back(c);
    }
  }
  EXPECT_EQ(expect_sm90_law(cases, true), static_cast<int>(cases.size()));
}

// Rows of a document behind its used length hold NaN; nothing of it may reach a result.
TEST(BackwardPacked, NanBehindLongDocumentsStaysThere) {
  FLASHLOOM_NEEDS_GPU();
  static const std::vector<int32_t> lengths = {140, 10, 700, 10, 256, 600, 120};
  static const std::vector<int32_t> used_query = {100, 0, 555, 1, 128, 590, 5};
  static const std::vector<int32_t> used_key = {130, 3, 601, 0, 128, 513, 64};
  static const Tensor queries = Tensor::index({7}, used_query);
  static const Tensor keys = Tensor::index({7}, used_key);
  RandomSequence random(fresh_seed(), RandomStream::test);
  std::vector<ContractCase> cases;
  for (const int64_t dim : {40, 64, 96, 128}) {
    for (const int64_t right : {-1, 0}) {
      ContractCase c = packed_case("packed", random, dim, lengths, lengths);
      c.call.options.visibility.right = right;
      c.call.options.sequences.used_query = queries;
      c.call.options.sequences.used_key = keys;
      c.call.change = [](attention_test::Tensor& rows, char name) {
        const TensorView& view = rows.view();
        const std::vector<int32_t>& used = name == 'q' || name == 'd' ? used_query : used_key;
        const std::vector<int32_t> offsets = offsets_of(lengths);
        for (int64_t i = 0; i < rows.size(); ++i) {
          const int64_t row = i / view.dim(2) % view.dim(1);
          for (size_t n = 0; n < used.size(); ++n) {
            if (row >= offsets[n] + used[n] && row < offsets[n + 1]) {
              rows.set(i, std::numeric_limits<double>::quiet_NaN());
            }
          }
        }
      };
      cases.push_back(c);
    }
  }
  EXPECT_EQ(expect_sm90_law(cases, true), static_cast<int>(cases.size()));
}

// Documents that overlap: whatever the results are, the call ends, reports it and leaves memory
// alone (DeviceExecutor looks).
TEST(BackwardPacked, OffsetsThatContradictEachOtherSetTheStatus) {
  FLASHLOOM_NEEDS_GPU();
  RandomSequence random(fresh_seed(), RandomStream::test);
  for (const int64_t dim : {64, 96, 128}) {
    for (const float share : {1.0F, 0.02F}) {  // of few blocks, each waits for counts of heads
      ContractCase c = packed_case("overlapping", random, dim, {900, 100}, {900, 100});
      c.call.packed_queries = c.call.packed_keys = {0, 900, 100, 1000};
      c.call.options.execution.deterministic = false;
      c.call.options.execution.multiprocessor_share = share;
      const Tensor status = Tensor::index({1}, {0});
      c.call.options.execution.status = status;
      c.call.run(AttentionBackend::sm90, true, DeviceExecutor(), c.call.dtype, c.call.dtype);
      EXPECT_NE(*status.view().as<int32_t>(), 0) << "D " << dim << ", share " << share;
    }
  }
}

}  // namespace
}  // namespace flashloom
