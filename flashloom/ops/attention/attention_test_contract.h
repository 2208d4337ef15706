#pragma once

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "flashloom/ops/attention/attention_test_case.h"
#include "flashloom/ops/attention/attention_test_patterns.h"
#include "flashloom/ops/attention/random_blocks_for_test.h"

// Calls that together use every field of the contract that takes a gradient, for tests that hold a
// backend to the law (attention_test_law.h). Paged keys, gates and 8-bit storage have tests of
// their own.

namespace flashloom::attention_test {

struct ContractCase {
  std::string name;
  Case call;
  std::vector<std::shared_ptr<void>> kept = {};  // what the call's options point at
};

/// A value that lives as long as `of`.
template <class T>
T& keep(ContractCase& of, T value) {
  auto owned = std::make_shared<T>(std::move(value));
  of.kept.push_back(owned);
  return *owned;
}

class ContractCases {
 public:
  /// `tile` is the kernel's tile: lengths lie around its multiples.
  ContractCases(DType dtype, int64_t dim, int64_t tile, uint64_t seed)
      : dtype_(dtype), dim_(dim), tile_(tile), seed_(seed) {
    add_lengths();
    add_visibility();
    add_sequences();
    add_scores();
    add_patterns();
    add_gradients();
    add_storage();
  }

  const std::vector<ContractCase>& cases() const { return cases_; }

 private:
  ContractCase& add(const std::string& name, int64_t queries, int64_t keys) {
    cases_.push_back({name,
                      {.batch = 2,
                       .heads = 4,
                       .key_heads = 2,
                       .queries = queries,
                       .keys = keys,
                       .dim = dim_,
                       .value_dim = dim_,
                       .dtype = dtype_,
                       .seed = ++seed_}});
    return cases_.back();
  }

  Tensor random(DType dtype, std::initializer_list<int64_t> shape, double deviation = 1) {
    return std::move(Tensor(dtype, shape).random(++seed_, deviation));
  }

  void add_lengths() {
    for (const int64_t n : {int64_t{1}, tile_ - 1, tile_, tile_ + 1, 2 * tile_ + 3}) {
      add("full, length " + std::to_string(n), n, n);
      add("causal, length " + std::to_string(n), n, n).call.options.visibility.right = 0;
    }
    add("more keys than queries", tile_ - 7, 2 * tile_ + 9).call.options.visibility.right = 0;
    add("more queries than keys: the first rows are empty", 2 * tile_ + 9, tile_ - 7)
        .call.options.visibility.right = 0;
    add("no keys", tile_, 0);
    add("one query, many keys", 1, 5 * tile_ + 1).call.options.visibility.right = 0;
  }

  void add_visibility() {
    const std::array<int64_t, 3> windows[] = {{5, 0, 0},   {0, 0, 0},      {60, 37, -11},
                                              {-1, 5, 40}, {9, -1, -2000}, {64, 64, 0}};
    for (const auto& [left, right, offset] : windows) {
      ContractCase& c = add("window " + std::to_string(left) + ", " + std::to_string(right) +
                                " at " + std::to_string(offset),
                            2 * tile_ + 5, 3 * tile_ - 1);
      c.call.options.visibility = {left, right};
      c.call.options.positions.offset = offset;
    }
    ContractCase& c = add("starts of a longer sequence", tile_ + 3, tile_ + 30);
    c.call.options.visibility = {.left = 50, .right = 0};
    c.call.options.positions.query_start = 1000;
    c.call.options.positions.key_start = 970;
  }

  void add_sequences() {
    for (const int64_t right : {-1, 0}) {
      ContractCase& c = add("packed documents" + std::string(right == 0 ? ", causal" : ""),
                            3 * tile_ + 3, 4 * tile_ - 5);
      const auto t = static_cast<int32_t>(tile_);
      c.call.packed_queries = {0, 1, 1, t + 1, 2 * t, 3 * t + 3};
      c.call.packed_keys = {0, 1, 12, t + 12, 2 * t + 30, 4 * t - 5};
      c.call.options.visibility.right = right;
    }
    ContractCase& c = add("used lengths, NaN behind them", tile_ + 9, 2 * tile_ + 1);
    c.call.batch = 3;
    const auto t = static_cast<int32_t>(tile_);
    const std::vector<int32_t> used_query = {0, 17, t + 1};
    const std::vector<int32_t> used_key = {30, 0, t + 3};
    c.call.options.sequences.used_query = keep(c, Tensor::index({3}, used_query));
    c.call.options.sequences.used_key = keep(c, Tensor::index({3}, used_key));
    c.call.options.visibility.right = 0;
    c.call.change = [used_query, used_key](Tensor& rows, char name) {
      const TensorView& view = rows.view();
      const auto& used = name == 'q' || name == 'd' ? used_query : used_key;
      for (int64_t i = 0; i < rows.size(); ++i) {
        const int64_t row = i / view.dim(3) % view.dim(2);
        const int64_t b = i / (view.dim(3) * view.dim(2) * view.dim(1));
        if (row >= used[static_cast<size_t>(b)]) {
          rows.set(i, std::numeric_limits<double>::quiet_NaN());
        }
      }
    };
  }

  void add_scores() {
    {
      ContractCase& c = add("scale", tile_ + 3, tile_ + 11);
      c.call.options.score.scale = -0.3F;
    }
    {
      ContractCase& c = add("softcap", tile_ + 3, tile_ + 11);
      c.call.options.score.softcap = 1.5F;
      c.call.options.visibility.right = 0;
    }
    for (const bool causal : {false, true}) {
      ContractCase& c = add(causal ? "sinks, causal, empty rows" : "sinks", tile_ + 30, tile_ + 11);
      c.call.options.score.sinks = keep(c, random(DType::f32, {4}));
      c.call.options.visibility.right = causal ? 0 : -1;
      c.call.with_dlse = true;
    }
    {
      ContractCase& c = add("ALiBi", tile_ + 3, tile_ + 11);
      c.call.options.score.alibi_slopes = keep(c, random(DType::f32, {2, 4}, 0.1));
    }
    const std::array<int64_t, 3> shapes[] = {{2, 4, 1}, {1, 4, 0}, {2, 1, 1}, {1, 1, 0}};
    for (const auto& [b, h, full] : shapes) {
      const int64_t rows = tile_ + 3;
      ContractCase& c = add("bias of " + std::to_string(b) + ", " + std::to_string(h) +
                                (full == 1 ? ", rows" : ", one row"),
                            rows, tile_ + 11);
      c.call.options.score.bias = keep(c, random(dtype_, {b, h, full == 1 ? rows : 1, tile_ + 11}));
      c.call.options.visibility.right = b == 1 ? 0 : -1;
    }
    for (const float order : {1.0F, 0.5F, 2.0F}) {
      ContractCase& c = add("entropy of order " + std::to_string(order), tile_ + 3, tile_ + 11);
      c.call.with_entropy = true;
      c.call.entropy_order = order;
      c.call.with_dlse = order == 1;
      c.call.options.visibility.right = 0;
      if (order != 0.5F) {
        c.call.options.score.sinks = keep(c, random(DType::f32, {4}));
      }
    }
    for (const int64_t right : {-1, 0}) {
      ContractCase& c = add("dropout", tile_ + 3, tile_ + 11);
      c.call.options.visibility.right = right;
      c.call.options.dropout = {.probability = 0.25F,
                                .seed = number(c, 0x123456789abcdefULL + seed_),
                                .offset = number(c, 77)};
    }
    {
      ContractCase& c = add("everything of the score", tile_ + 5, 2 * tile_ + 1);
      c.call.options.score = {.scale = 0.2F,
                              .softcap = 2,
                              .alibi_slopes = keep(c, random(DType::f32, {4}, 0.1)),
                              .bias = keep(c, random(DType::f32, {2, 1, tile_ + 5, 2 * tile_ + 1})),
                              .sinks = keep(c, random(DType::f32, {4}))};
      c.call.options.dropout = {.probability = 0.1F, .seed = number(c, 5)};
      c.call.options.visibility = {.left = 70, .right = 3};
      c.call.with_dlse = true;
      c.call.with_entropy = true;
    }
    {
      // Logits of some hundreds: a softmax without the maximum subtracted overflows; a few keys
      // take all of the weight.
      ContractCase& c = add("extreme logits", tile_ + 3, tile_ + 11);
      c.call.deviation = 8;
      c.call.options.visibility.right = 0;
    }
  }

  void add_patterns() {
    const std::array<int64_t, 2> sizes[] = {{16, 32}, {64, 64}, {128, 128}, {20, 40}};
    for (const auto& [rows, keys] : sizes) {
      for (const int64_t heads : {1, 4}) {
        const int64_t n = 3 * tile_ + 8;
        ContractCase& c = add("blocks of " + std::to_string(rows) + " x " + std::to_string(keys) +
                                  ", " + std::to_string(heads) + " heads",
                              n, n + 21);
        c.call.options.visibility.right = heads == 1 ? -1 : 0;
        c.call.options.blocks = keep(c, RandomBlocks(n, n + 21, rows, keys, heads, ++seed_)).blocks;
      }
    }
    for (const bool exclude_self : {false, true}) {
      const int64_t n = 2 * tile_ + 22;
      ContractCase& c = add("buckets, positions, output rows", n, n + 20);
      const RandomBuckets& rows = keep(c, RandomBuckets(2, 4, 2, n, n + 20));
      c.call.options.visibility.right = exclude_self ? 0 : -1;
      c.call.options.positions = {.query = rows.query,
                                  .key = rows.key,
                                  .output_index = rows.output,
                                  .query_bucket_offsets = rows.query_offsets,
                                  .key_bucket_offsets = rows.key_offsets,
                                  .exclude_self = exclude_self};
      c.call.with_dlse = true;
      c.call.with_entropy = exclude_self;
    }
    {
      std::vector<int32_t> positions;
      for (int n = 0; n < 8; ++n) {
        for (int i = 0; i < 100; ++i) {
          positions.push_back(3 * i + (i * i + n / 2) % 3);
        }
      }
      ContractCase& c = add("dropped rows", 100, 100);
      c.call.key_heads = 4;
      const Tensor& index = keep(c, Tensor::index({2, 4, 100}, positions));
      const Tensor& counts = keep(c, Tensor::index({2, 4}, {100, 61, 0, 64, 65, 63, 99, 1}));
      c.call.options.visibility = {.left = 77, .right = 0};
      c.call.options.positions = {
          .query = index, .key = index, .query_count = counts, .key_count = counts};
    }
    {
      ContractCase& c = add("a query does not see itself", tile_ + 9, tile_ + 9);
      c.call.options.visibility.right = 0;
      c.call.options.positions.exclude_self = true;
    }
  }

  void add_gradients() {
    {
      ContractCase& c = add("gradient of the lse", tile_ + 3, tile_ + 11);
      c.call.with_dlse = true;
      c.call.options.visibility.right = 0;
    }
    {
      ContractCase& c = add("gradients in f32", tile_ + 3, tile_ + 11);
      c.call.gradient_dtype = DType::f32;
      c.call.options.visibility.right = 0;
    }
    {
      ContractCase& c = add("accumulated gradients", tile_ + 3, tile_ + 11);
      c.call.gradient_dtype = DType::f32;
      c.call.accumulate = true;
      c.call.options.score.sinks = keep(c, random(DType::f32, {4}));
      c.call.options.score.bias = keep(c, random(DType::f32, {2, 4, tile_ + 3, tile_ + 11}));
    }
  }

  void add_storage() {
    {
      ContractCase& c = add("a value dimension of its own", tile_ + 3, tile_ + 11);
      c.call.value_dim = dim_ / 2 + 8;
      c.call.options.visibility.right = 0;
    }
    {
      ContractCase& c = add("rows of odd width", tile_ + 3, tile_ + 11);
      c.call.dim = dim_ - 3;
      c.call.value_dim = dim_ - 5;
    }
    {
      ContractCase& c = add("as many key heads as heads", tile_ + 3, tile_ + 11);
      c.call.key_heads = 4;
      c.call.options.visibility.right = 0;
    }
  }

  static Tensor scalar(uint64_t value) {
    Tensor tensor(DType::u64, {1});
    *tensor.view().as<uint64_t>() = value;
    return tensor;
  }

  ConstTensorView number(ContractCase& c, uint64_t value) { return keep(c, scalar(value)); }

  DType dtype_;
  int64_t dim_, tile_;
  uint64_t seed_;
  std::vector<ContractCase> cases_;
};

}  // namespace flashloom::attention_test
