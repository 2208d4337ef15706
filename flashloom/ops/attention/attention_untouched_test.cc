#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <functional>
#include <stdexcept>
#include <vector>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/attention_test_case.h"

// Keys that no query sees are never read: they lie in memory that ends the program when touched.

namespace flashloom {
namespace {

using attention_test::backward;
using attention_test::distance;
using attention_test::forward;
using attention_test::Tensor;
using attention_test::with_backend;

constexpr int64_t kDim = 64;
constexpr int64_t kKeys = 1024;
constexpr int64_t kQueries = 256;
constexpr int64_t kTile = 128;  // no tile of keys is longer

// One head of (keys, D) f32, at 16 rows a page, of which parts can be forbidden.
class GuardedRows {
 public:
  explicit GuardedRows(uint64_t seed) {
    data_ = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data_ == MAP_FAILED) {
      throw std::runtime_error("mmap failed");
    }
    RandomSequence numbers(seed, RandomStream::test);
    for (int64_t i = 0; i < kKeys * kDim; ++i) {
      static_cast<float*>(data_)[i] = numbers.normal();
    }
  }

  GuardedRows(const GuardedRows&) = delete;

  ~GuardedRows() { munmap(data_, kBytes); }

  /// Rows [first, end), multiples of a page's.
  void forbid(int64_t first, int64_t end) {
    constexpr auto kRow = static_cast<int64_t>(kDim * sizeof(float));
    if (first < end && mprotect(static_cast<std::byte*>(data_) + first * kRow,
                                static_cast<size_t>((end - first) * kRow), PROT_NONE) != 0) {
      throw std::runtime_error("mprotect failed");
    }
  }

  void allow() { mprotect(data_, kBytes, PROT_READ | PROT_WRITE); }

  ConstTensorView view() const {
    return {static_cast<const void*>(data_), DType::f32, {1, 1, kKeys, kDim}};
  }

 private:
  static constexpr size_t kBytes = kKeys * kDim * sizeof(float);
  void* data_;
};

class AttentionUntouched : public testing::Test {
 protected:
  void SetUp() override {
    if (sysconf(_SC_PAGESIZE) > kTile * kDim * 4) {
      GTEST_SKIP() << "a page holds more than a tile";
    }
  }

  // Runs with the keys outside the given tiles forbidden, and again with all allowed.
  void expect_only(const std::vector<bool>& tiles, const AttentionOptions& options,
                   bool with_backward = true, int64_t queries = kQueries) {
    const Tensor q = std::move(Tensor(DType::f32, {1, 2, queries, kDim}).random(1));
    const Tensor dout = std::move(Tensor(DType::f32, {1, 2, queries, kDim}).random(4));
    const AttentionOptions call = with_backend(options, AttentionBackend::cpu);
    Tensor outs[2];
    Tensor gradients[2];
    for (const bool guarded : {true, false}) {
      for (size_t t = 0; t < tiles.size(); ++t) {
        if (guarded && !tiles[t]) {
          const auto first = static_cast<int64_t>(t) * kTile;
          k_.forbid(first, first + kTile);
          v_.forbid(first, first + kTile);
        }
      }
      Tensor& out = outs[guarded ? 0 : 1];
      out = Tensor(DType::f32, {1, 2, queries, kDim});
      const Tensor lse(DType::f32, {1, 2, queries});
      forward({.out = out, .lse = lse}, {q, k_.view(), v_.view()}, call);
      if (with_backward) {
        Tensor& dk = gradients[guarded ? 0 : 1];
        const Tensor dq(DType::f32, {1, 2, queries, kDim});
        dk = Tensor(DType::f32, {1, 1, kKeys, kDim});
        const Tensor dv(DType::f32, {1, 1, kKeys, kDim});
        backward({.dq = dq, .dk = dk, .dv = dv}, {q, k_.view(), v_.view()},
                 {.out = out, .lse = lse, .dout = dout}, call);
      }
      k_.allow();
      v_.allow();
    }
    EXPECT_TRUE(outs[0].same_bits(outs[1]));
    EXPECT_EQ(distance(outs[0], outs[1]), 0) << "no NaN";
    if (with_backward) {
      EXPECT_TRUE(gradients[0].same_bits(gradients[1]));
      for (size_t t = 0; t < tiles.size(); ++t) {
        bool any = false;
        for (int64_t i = 0; i < kTile * kDim; ++i) {
          any = any || gradients[0].get(static_cast<int64_t>(t) * kTile * kDim + i) != 0;
        }
        EXPECT_EQ(any, tiles[t]) << "tile " << t;
      }
    }
  }

  GuardedRows k_{2};
  GuardedRows v_{3};
};

using AttentionUntouchedDeathTest = AttentionUntouched;

TEST_F(AttentionUntouchedDeathTest, TheGuardGuards) {
  k_.forbid(0, kTile);
  EXPECT_DEATH({ [[maybe_unused]] volatile float x = *k_.view().as<float>(); }, "");
}

TEST_F(AttentionUntouched, KeysOutsideAWindow) {
  AttentionOptions options;
  // Positions 448 to 703 see keys 398 to 711.
  options.visibility = {.left = 50, .right = 8};
  options.positions.offset = 448;
  expect_only({false, false, false, true, true, true, false, false}, options);
}

TEST_F(AttentionUntouched, KeysBehindTheDiagonal) {
  AttentionOptions options;
  options.visibility.right = 0;
  options.positions.offset = 128;  // the last query sees key 383
  expect_only({true, true, true, false, false, false, false, false}, options);
}

TEST_F(AttentionUntouched, KeysBehindTheUsedLength) {
  const Tensor used = Tensor::index({1}, {3 * kTile});
  AttentionOptions options;
  options.sequences.used_key = used;
  expect_only({true, true, true, false, false, false, false, false}, options);
}

TEST_F(AttentionUntouched, BlocksThatAMaskLeavesOut) {
  // Rows of blocks: {1, 4}, {4, 6}; columns: 1 <- 0, 4 <- 0, 1, 6 <- 1.
  const Tensor offsets = Tensor::index({1, 1, 3}, {0, 2, 4});
  const Tensor columns = Tensor::index({1, 1, 4}, {1, 4, 4, 6});
  const Tensor column_offsets = Tensor::index({1, 1, 9}, {0, 0, 1, 1, 1, 3, 3, 4, 4});
  const Tensor rows = Tensor::index({1, 1, 4}, {0, 0, 1, 1});
  AttentionOptions options;
  options.blocks = {.block_rows = kTile,
                    .block_keys = kTile,
                    .row_offsets = offsets,
                    .columns = columns,
                    .column_offsets = column_offsets,
                    .rows = rows};
  expect_only({false, true, false, false, true, false, true, false}, options);
}

TEST_F(AttentionUntouched, KeysAtPositionsThatNoQueryReaches) {
  // Dropped keys: positions 3 j; queries at 0 to 510 see keys below 171.
  std::vector<int32_t> query_positions;
  std::vector<int32_t> key_positions;
  for (int32_t i = 0; i < kQueries; ++i) {
    query_positions.push_back(2 * i);
  }
  for (int32_t j = 0; j < kKeys; ++j) {
    key_positions.push_back(3 * j);
  }
  std::vector<int32_t> both = query_positions;
  both.insert(both.end(), query_positions.begin(), query_positions.end());
  const Tensor query = Tensor::index({1, 2, kQueries}, both);
  const Tensor key = Tensor::index({1, 1, kKeys}, key_positions);
  AttentionOptions options;
  options.visibility.right = 0;
  options.positions = {.query = query, .key = key};
  expect_only({true, true, false, false, false, false, false, false}, options);
}

TEST_F(AttentionUntouched, KeysOutsideADecodingWindow) {
  AttentionOptions options;
  options.visibility = {.left = 255, .right = 0};
  expect_only({false, false, false, false, false, false, true, true}, options, false, 1);
}

TEST_F(AttentionUntouched, ValuesBehindAClosedGate) {
  // Keys of the middle tiles are small: their scores stay below the gate, their values unread.
  for (int64_t i = 2 * kTile * kDim; i < 6 * kTile * kDim; ++i) {
    const_cast<float*>(k_.view().as<float>())[i] *= 1e-3F;
  }
  v_.forbid(2 * kTile, 6 * kTile);
  const Tensor q = std::move(Tensor(DType::f32, {1, 2, kQueries, kDim}).random(1));
  const Tensor threshold = std::move(Tensor(DType::f32, {2, 1}).fill(0.5));
  const Tensor kept(DType::i32, {1, 2, 2, 1});
  AttentionOptions options;
  options.gate = {.kind = AttentionGate::Kind::absolute,
                  .threshold = threshold,
                  .rows = 128,
                  .keys = kTile,
                  .kept = kept};
  const Tensor out(DType::f32, {1, 2, kQueries, kDim});
  forward({.out = out}, {q, k_.view(), v_.view()}, with_backend(options, AttentionBackend::cpu));
  v_.allow();
  EXPECT_EQ(kept.view().as<int32_t>()[0], 0b11000011);
}

TEST_F(AttentionUntouched, PagesThatNoSequenceOwns) {
  constexpr int64_t kPage = 128;
  const Tensor pages = Tensor::index({1, 4}, {6, 2, 3, 5});
  const Tensor used = Tensor::index({1}, {2 * kPage + 1});  // page 5 holds no key in use
  for (const int64_t queries : {int64_t{1}, int64_t{100}}) {
    AttentionOptions options;
    options.sequences = {
        .used_key = used, .page_table = pages, .max_key = 4 * kPage, .page_size = kPage};
    const Tensor q = std::move(Tensor(DType::f32, {1, 2, queries, kDim}).random(1));
    const auto paged = [](const GuardedRows& rows) {
      return rows.view().reshape({kKeys / kPage, 1, kPage, kDim});
    };
    for (const int64_t page : {0, 1, 4, 5, 7}) {
      k_.forbid(page * kPage, (page + 1) * kPage);
      v_.forbid(page * kPage, (page + 1) * kPage);
    }
    const Tensor out(DType::f32, {1, 2, queries, kDim});
    forward({.out = out}, {q, paged(k_), paged(v_)}, with_backend(options, AttentionBackend::cpu));
    k_.allow();
    v_.allow();
    const Tensor expected(DType::f32, {1, 2, queries, kDim});
    forward({.out = expected}, {q, paged(k_), paged(v_)},
            with_backend(options, AttentionBackend::reference));
    EXPECT_LE(distance(out, expected), 2e-6);
  }
}

}  // namespace
}  // namespace flashloom
