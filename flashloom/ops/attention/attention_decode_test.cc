#include "flashloom/ops/attention/cpu/attention_decode.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/attention_test_law.h"
#include "flashloom/ops/attention/attention_test_targets.h"

// Decoding on the CPU: every number of rows that share a key, every form in which rows are read,
// on every instruction set.

namespace flashloom {
namespace {

using attention_test::Case;
using attention_test::Executor;
using attention_test::for_each_target;
using attention_test::forward;
using attention_test::Law;
using attention_test::Results;
using attention_test::Tensor;
using attention_test::with_backend;

struct Rows {
  int64_t group;
  int64_t queries;
};

// Group x queries <= 16; the register tiles hold up to 4 rows.
constexpr Rows kRows[] = {{1, 1}, {2, 1}, {3, 1},  {4, 1}, {5, 1}, {7, 1},
                          {8, 1}, {9, 1}, {16, 1}, {1, 3}, {2, 5}, {4, 4}};

// Whole vectors, halves of a pair of them, and rows that have to be converted.
constexpr int64_t kDims[] = {8, 18, 64, 48, 80, 128, 37, 256};

std::string words(const Case& call) {
  return std::string(dtype_name(call.dtype)) + ", heads " + std::to_string(call.heads) + ":" +
         std::to_string(call.key_heads) + ", queries " + std::to_string(call.queries) + ", keys " +
         std::to_string(call.keys) + ", D " + std::to_string(call.dim) + ", E " +
         std::to_string(call.value_dim);
}

// A call for each number of rows and storage, with dimensions and lengths that differ.
std::vector<Case> calls() {
  std::vector<Case> all;
  uint64_t seed = 1;
  for (const Rows& rows : kRows) {
    for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
      const size_t n = all.size();
      Case call = {.batch = 2,
                   .heads = 2 * rows.group,
                   .key_heads = 2,
                   .queries = rows.queries,
                   // A key, a part of a block, some blocks, more than a split.
                   .keys = std::array<int64_t, 4>{1, 21, 150, 531}[n % 4],
                   .dim = kDims[n % 8],
                   .value_dim = kDims[(n / 3) % 8],
                   .dtype = dtype,
                   .seed = ++seed};
      call.options.visibility.right = 0;
      all.push_back(std::move(call));
    }
  }
  return all;
}

TEST(AttentionDecode, KeepsTheLawOnEveryInstructionSet) {
  std::vector<std::pair<std::string, Law>> laws;
  for (const Case& call : calls()) {
    ASSERT_LE(call.heads / call.key_heads * call.queries, kDecodeRows) << "not decoding";
    laws.emplace_back(words(call), Law(call, false));
  }
  for_each_target([&](int64_t) {
    for (const auto& [name, law] : laws) {
      SCOPED_TRACE(name);
      law.expect(AttentionBackend::cpu, Executor());
    }
  });
}

TEST(AttentionDecode, WindowsUsedLengthsAndScoresKeepTheLaw) {
  const Tensor sinks = std::move(Tensor(DType::f32, {6}).random(11));
  const Tensor slopes = std::move(Tensor(DType::f32, {6}).random(12, 0.01));
  const Tensor used_query = Tensor::index({2}, {1, 3});
  const Tensor used_key = Tensor::index({2}, {1100, 700});
  std::vector<std::pair<std::string, Law>> laws;
  for (const DType dtype : {DType::f32, DType::bf16}) {
    for (int kind = 0; kind < 6; ++kind) {
      Case call = {.batch = 2,
                   .heads = 6,
                   .key_heads = 2,
                   .queries = 3,
                   .keys = 1111,
                   .dim = 64,
                   .value_dim = 32,
                   .dtype = dtype,
                   .seed = static_cast<uint64_t>(kind + 1)};
      call.options.visibility.right = 0;
      if (kind == 0) {  // each query sees keys that its neighbours do not
        call.options.visibility = {.left = 2, .right = 1};
      } else if (kind == 1) {
        call.options.visibility.left = 600;
        call.options.execution.splits = 3;
      } else if (kind == 2) {
        call.options.score = {.softcap = 3, .alibi_slopes = slopes, .sinks = sinks};
      } else if (kind == 3) {
        call.options.sequences = {.used_query = used_query, .used_key = used_key};
        call.options.score.alibi_slopes = slopes;
      } else if (kind == 4) {
        call.options.positions.offset = -1;  // the first query sees nothing
      } else {
        call.options.visibility.right = 500;
        call.options.positions.offset = 300;
        call.options.score.alibi_slopes = slopes;  // on both sides of a query
      }
      laws.emplace_back(words(call) + ", kind " + std::to_string(kind), Law(call, false));
    }
  }
  for_each_target([&](int64_t) {
    for (const auto& [name, law] : laws) {
      SCOPED_TRACE(name);
      law.expect(AttentionBackend::cpu, Executor());
    }
  });
}

// Keys and values in pages of any order, in memory with NaN between the rows in use.
struct PagedCopy {
  Tensor k, v, table;

  PagedCopy(const Tensor& keys, const Tensor& values, int64_t page_size) {
    const int64_t batch = keys.view().dim(0);
    const int64_t heads = keys.view().dim(1);
    const int64_t length = keys.view().dim(2);
    const int64_t pages = tile_count(length, page_size);
    std::vector<int32_t> order(static_cast<size_t>(batch * pages));
    std::iota(order.begin(), order.end(), 0);
    std::reverse(order.begin() + 1, order.end());
    table = Tensor::index({batch, pages}, order);
    const auto copy = [&](const Tensor& from, Tensor& to) {
      const int64_t width = from.view().dim(3);
      to = Tensor(from.view().dtype, {batch * pages, heads, page_size, width});
      for (int64_t row = 0; row < batch * heads * length; ++row) {
        const int64_t key = row % length;
        const int64_t head = row / length % heads;
        const auto page = static_cast<size_t>(row / length / heads * pages + key / page_size);
        const int64_t at = (order[page] * heads + head) * page_size + key % page_size;
        for (int64_t c = 0; c < width; ++c) {
          to.set(at * width + c, from.get(row * width + c));
        }
      }
    };
    copy(keys, k);
    copy(values, v);
  }
};

TEST(AttentionDecode, PagesAndThreadsGiveTheSameBits) {
  for_each_target([](int64_t) {
    for (const Case& call : calls()) {
      SCOPED_TRACE(words(call));
      const auto random = [&](int64_t heads, int64_t rows, int64_t width, uint64_t seed) {
        return std::move(Tensor(call.dtype, {call.batch, heads, rows, width}).random(seed));
      };
      const Tensor q = random(call.heads, call.queries, call.dim, call.seed);
      const Tensor k = random(call.key_heads, call.keys, call.dim, call.seed + 1);
      const Tensor v = random(call.key_heads, call.keys, call.value_dim, call.seed + 2);
      const auto out = [&] {
        return Tensor(call.dtype, {call.batch, call.heads, call.queries, call.value_dim});
      };
      const AttentionOptions options = with_backend(call.options, AttentionBackend::cpu);
      set_thread_count(1);
      const Tensor plain = out();
      forward({.out = plain}, {q, k, v}, options);
      set_thread_count(3);
      const Tensor threads = out();
      forward({.out = threads}, {q, k, v}, options);
      EXPECT_TRUE(plain.same_bits(threads)) << "threads";
      for (const int64_t page_size : {1, 7, 64}) {
        const PagedCopy pages(k, v, page_size);
        AttentionOptions paged = options;
        paged.sequences = {.page_table = pages.table, .max_key = call.keys, .page_size = page_size};
        const Tensor other = out();
        forward({.out = other}, {q, pages.k, pages.v}, paged);
        EXPECT_TRUE(plain.same_bits(other)) << "pages of " << page_size;
      }
    }
    set_thread_count(0);
  });
}

TEST(AttentionDecode, BitsDoNotDependOnHowManyRowsShareAKey) {
  for_each_target([](int64_t) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const Tensor q = std::move(Tensor(dtype, {1, 7, 1, 64}).random(1));
      const Tensor k = std::move(Tensor(dtype, {1, 1, 300, 64}).random(2));
      const Tensor v = std::move(Tensor(dtype, {1, 1, 300, 64}).random(3));
      const Tensor all(dtype, {1, 7, 1, 64});
      forward({.out = all}, {q, k, v}, with_backend({}, AttentionBackend::cpu));
      for (int64_t first = 0; first < 7; ++first) {
        for (const int64_t count : {1, 2, 3, 4}) {
          if (first + count > 7) {
            continue;
          }
          const Tensor some(dtype, {1, 7, 1, 64});
          forward({.out = some.view().slice(1, first, count)},
                  {ConstTensorView(q).slice(1, first, count), k, v},
                  with_backend({}, AttentionBackend::cpu));
          for (int64_t i = first * 64; i < (first + count) * 64; ++i) {
            ASSERT_EQ(some.get(i), all.get(i)) << dtype_name(dtype) << ", rows " << first << " to "
                                               << first + count << ", element " << i;
          }
        }
      }
    }
  });
}

// Each tensor its own storage: queries of one kind with keys and values of others.
TEST(AttentionDecode, MixedStorageEqualsTheReference) {
  constexpr DType kTypes[] = {DType::f32, DType::bf16, DType::f16};
  for_each_target([&](int64_t) {
    for (const DType query : kTypes) {
      for (const DType key : kTypes) {
        for (const DType value : kTypes) {
          const Tensor q = std::move(Tensor(query, {1, 3, 1, 64}).random(1));
          const Tensor k = std::move(Tensor(key, {1, 1, 100, 64}).random(2));
          const Tensor v = std::move(Tensor(value, {1, 1, 100, 96}).random(3));
          const Tensor out(DType::f32, {1, 3, 1, 96});
          const Tensor expected(DType::f64, {1, 3, 1, 96});
          forward({.out = out}, {q, k, v}, with_backend({}, AttentionBackend::cpu));
          forward({.out = expected}, {q, k, v}, with_backend({}, AttentionBackend::reference));
          // f32 arithmetic whatever the storage: weights are not rounded.
          EXPECT_LE(distance(out, expected), 2e-6)
              << dtype_name(query) << ", " << dtype_name(key) << ", " << dtype_name(value);
        }
      }
    }
  });
}

}  // namespace
}  // namespace flashloom
