#include "flashloom/ops/attention/flashloom_attention.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <cstring>
#include <string>
#include <vector>

#include "flashloom/ops/attention/attention_test_case.h"

namespace flashloom {
namespace {

using attention_test::distance;
using attention_test::Tensor;
using attention_test::Workspace;

FlashloomTensor describe(const Tensor& tensor) {
  const TensorView& view = tensor.view();
  FlashloomTensor result = {};
  result.data = view.data;
  result.dtype = static_cast<int32_t>(view.dtype);
  result.rank = view.rank;
  std::copy_n(view.shape.begin(), view.rank, result.shape);
  std::copy_n(view.strides.begin(), view.rank, result.strides);
  return result;
}

Tensor random(DType dtype, std::initializer_list<int64_t> shape, uint64_t seed) {
  return std::move(Tensor(dtype, shape).random(seed));
}

Tensor seed_of(uint64_t value) {
  Tensor tensor(DType::u64, {1});
  std::memcpy(tensor.view().data, &value, sizeof(value));
  return tensor;
}

// B 2, H 4, G 2, S_q 20, S_k 24, D 16 with what the first header had.
struct Plain {
  Tensor q = random(DType::f32, {2, 4, 20, 16}, 1);
  Tensor k = random(DType::f32, {2, 2, 24, 16}, 2);
  Tensor v = random(DType::f32, {2, 2, 24, 16}, 3);
  Tensor dout = random(DType::f32, {2, 4, 20, 16}, 4);
  Tensor out{DType::f32, {2, 4, 20, 16}};
  Tensor lse{DType::f32, {2, 4, 20}};
  Tensor dq{DType::f32, {2, 4, 20, 16}};
  Tensor dk{DType::f32, {2, 2, 24, 16}};
  Tensor dv{DType::f32, {2, 2, 24, 16}};
  FlashloomAttention call = {};

  Plain() {
    call.size = sizeof(call);
    call.q = describe(q);
    call.k = describe(k);
    call.v = describe(v);
    call.out = describe(out);
    call.lse = describe(lse);
    call.dout = describe(dout);
    call.dq = describe(dq);
    call.dk = describe(dk);
    call.dv = describe(dv);
    call.left = -1;
    call.deterministic = 1;
  }

  // Status of the forward pass, then of the backward pass, with the workspace they ask for.
  std::string run() {
    char message[256] = "";
    size_t bytes = 0;
    if (flashloom_attention_forward_workspace(&call, &bytes, message, sizeof(message)) != 0) {
      return message;
    }
    const Workspace forward(static_cast<int64_t>(bytes));
    call.workspace = forward.span().data();
    call.workspace_bytes = bytes;
    if (flashloom_attention_forward(&call, message, sizeof(message)) != 0 ||
        flashloom_attention_backward_workspace(&call, &bytes, message, sizeof(message)) != 0) {
      return message;
    }
    const Workspace backward(static_cast<int64_t>(bytes));
    call.workspace = backward.span().data();
    call.workspace_bytes = bytes;
    return flashloom_attention_backward(&call, message, sizeof(message)) == 0 ? "" : message;
  }
};

// Every field reaches the contract: the call in C and the same one in C++ give the same bits.
TEST(FlashloomAttention, CarriesTheFieldsOfTheScore) {
  Plain c;
  const Tensor sinks = random(DType::f32, {4}, 5);
  const Tensor slopes = random(DType::f32, {2, 4}, 6);
  const Tensor bias = random(DType::f32, {1, 4, 20, 24}, 7);
  const Tensor seed = seed_of(8);
  const Tensor offset = seed_of(9);
  const Tensor dlse = random(DType::f32, {2, 4, 20}, 10);
  const Tensor dentropy = random(DType::f32, {2, 4, 20}, 11);
  const Tensor used_query = Tensor::index({2}, {20, 13});
  const Tensor used_key = Tensor::index({2}, {17, 24});
  Tensor entropy(DType::f32, {2, 4, 20});
  Tensor dsinks(DType::f32, {4});
  Tensor dbias(DType::f32, {1, 4, 20, 24});
  c.call.left = 12;
  c.call.right = 3;
  c.call.has_starts = 1;
  c.call.query_start = 6;
  c.call.key_start = 4;
  c.call.scale = 0.5f;
  c.call.softcap = 3;
  c.call.sinks = describe(sinks);
  c.call.alibi_slopes = describe(slopes);
  c.call.bias = describe(bias);
  c.call.dropout_probability = 0.25f;
  c.call.dropout_seed = describe(seed);
  c.call.dropout_offset = describe(offset);
  c.call.used_query = describe(used_query);
  c.call.used_key = describe(used_key);
  c.call.dlse = describe(dlse);
  c.call.entropy = describe(entropy);
  c.call.dentropy = describe(dentropy);
  c.call.dsinks = describe(dsinks);
  c.call.dbias = describe(dbias);
  c.call.exclude_self = 1;
  ASSERT_EQ(c.run(), "");

  AttentionOptions options;
  options.visibility = {.left = 12, .right = 3};
  options.positions.query_start = 6;
  options.positions.key_start = 4;
  options.positions.exclude_self = true;
  options.sequences.used_query = used_query;
  options.sequences.used_key = used_key;
  options.score = {
      .scale = 0.5f, .softcap = 3, .alibi_slopes = slopes, .bias = bias, .sinks = sinks};
  options.dropout = {.probability = 0.25f, .seed = seed, .offset = offset};
  const Plain own;
  const Tensor own_entropy(DType::f32, {2, 4, 20});
  const Tensor own_dsinks(DType::f32, {4});
  const Tensor own_dbias(DType::f32, {1, 4, 20, 24});
  attention_test::forward({.out = own.out, .lse = own.lse, .entropy = own_entropy},
                          {own.q, own.k, own.v}, options);
  attention_test::backward(
      {.dq = own.dq, .dk = own.dk, .dv = own.dv, .dsinks = own_dsinks, .dbias = own_dbias},
      {own.q, own.k, own.v},
      {.out = own.out,
       .lse = own.lse,
       .entropy = own_entropy,
       .dout = own.dout,
       .dlse = dlse,
       .dentropy = dentropy},
      options);
  EXPECT_TRUE(c.out.same_bits(own.out));
  EXPECT_TRUE(c.lse.same_bits(own.lse));
  EXPECT_TRUE(entropy.same_bits(own_entropy));
  EXPECT_TRUE(c.dq.same_bits(own.dq));
  EXPECT_TRUE(c.dk.same_bits(own.dk));
  EXPECT_TRUE(c.dv.same_bits(own.dv));
  EXPECT_TRUE(dsinks.same_bits(own_dsinks));
  EXPECT_TRUE(dbias.same_bits(own_dbias));

  c.call.accumulate = 1;
  ASSERT_EQ(c.run(), "");
  for (int64_t i = 0; i < own.dq.size(); ++i) {
    ASSERT_NEAR(c.dq.get(i), 2 * own.dq.get(i), 1e-4) << "gradients were not added";
  }
}

// Positions that skip rows, output rows in reverse, two buckets, and a block mask in another call.
TEST(FlashloomAttention, CarriesPositionsBucketsAndBlocks) {
  Plain c;
  std::vector<int32_t> positions, keys, rows;
  for (int32_t head = 0; head < 8; ++head) {
    for (int32_t i = 0; i < 20; ++i) {
      positions.push_back(3 * (i % 10));
      rows.push_back(19 - i);
    }
  }
  for (int32_t head = 0; head < 4; ++head) {
    for (int32_t j = 0; j < 24; ++j) {
      keys.push_back(2 * (j % 12));
    }
  }
  const auto repeat = [](std::vector<int32_t> values, size_t times) {
    std::vector<int32_t> all(values.size() * times);
    for (size_t i = 0; i < all.size(); ++i) {
      all[i] = values[i % values.size()];
    }
    return all;
  };
  const Tensor query_positions = Tensor::index({2, 4, 20}, positions);
  const Tensor key_positions = Tensor::index({2, 2, 24}, keys);
  const Tensor output_index = Tensor::index({2, 4, 20}, rows);
  const Tensor query_count = Tensor::index({2, 4}, repeat({18}, 8));
  const Tensor key_count = Tensor::index({2, 2}, repeat({23}, 4));
  const Tensor query_buckets = Tensor::index({2, 4, 3}, repeat({0, 10, 18}, 8));
  const Tensor key_buckets = Tensor::index({2, 2, 3}, repeat({0, 12, 23}, 4));
  c.call.query_positions = describe(query_positions);
  c.call.key_positions = describe(key_positions);
  c.call.output_index = describe(output_index);
  c.call.query_count = describe(query_count);
  c.call.key_count = describe(key_count);
  c.call.query_bucket_offsets = describe(query_buckets);
  c.call.key_bucket_offsets = describe(key_buckets);
  c.call.right = 0;
  ASSERT_EQ(c.run(), "");
  AttentionOptions options;
  options.visibility.right = 0;
  options.positions = {.query = query_positions,
                       .key = key_positions,
                       .query_count = query_count,
                       .key_count = key_count,
                       .output_index = output_index,
                       .query_bucket_offsets = query_buckets,
                       .key_bucket_offsets = key_buckets};
  const Plain own;
  attention_test::forward({.out = own.out, .lse = own.lse}, {own.q, own.k, own.v}, options);
  attention_test::backward({.dq = own.dq, .dk = own.dk, .dv = own.dv}, {own.q, own.k, own.v},
                           {.out = own.out, .lse = own.lse, .dout = own.dout}, options);
  EXPECT_TRUE(c.out.same_bits(own.out));
  EXPECT_TRUE(c.dq.same_bits(own.dq));
  EXPECT_TRUE(c.dk.same_bits(own.dk));

  Plain blocks;
  const Tensor row_offsets = Tensor::index({1, 1, 3}, {0, 2, 3});
  const Tensor columns = Tensor::index({1, 1, 3}, {0, 2, 1});
  const Tensor partial = Tensor::index({1, 1, 3}, {-1, 0, -1});
  Tensor bits(DType::u8, {1, 16, 1});
  std::memset(bits.view().data, 0x5a, 16);
  const Tensor column_offsets = Tensor::index({1, 1, 4}, {0, 1, 2, 3});
  const Tensor transposed_rows = Tensor::index({1, 1, 3}, {0, 1, 0});
  const Tensor transposed_partial = Tensor::index({1, 1, 3}, {-1, -1, 0});
  blocks.call.right = -1;
  blocks.call.block_rows = 16;
  blocks.call.block_keys = 8;
  blocks.call.block_row_offsets = describe(row_offsets);
  blocks.call.block_columns = describe(columns);
  blocks.call.block_partial = describe(partial);
  blocks.call.block_bits = describe(bits);
  blocks.call.block_column_offsets = describe(column_offsets);
  blocks.call.block_transposed_rows = describe(transposed_rows);
  blocks.call.block_transposed_partial = describe(transposed_partial);
  ASSERT_EQ(blocks.run(), "");
  options = {};
  options.blocks = {.block_rows = 16,
                    .block_keys = 8,
                    .row_offsets = row_offsets,
                    .columns = columns,
                    .partial = partial,
                    .bits = bits,
                    .column_offsets = column_offsets,
                    .rows = transposed_rows,
                    .transposed_partial = transposed_partial};
  attention_test::forward({.out = own.out, .lse = own.lse}, {own.q, own.k, own.v}, options);
  attention_test::backward({.dq = own.dq, .dk = own.dk, .dv = own.dv}, {own.q, own.k, own.v},
                           {.out = own.out, .lse = own.lse, .dout = own.dout}, options);
  EXPECT_TRUE(blocks.out.same_bits(own.out));
  EXPECT_TRUE(blocks.dk.same_bits(own.dk));
}

TEST(FlashloomAttention, CarriesPagesAndGates) {
  Plain c;
  // The same keys in pages of 8, the pages of the second sequence before those of the first.
  Tensor k(DType::f32, {6, 2, 8, 16});
  Tensor v(DType::f32, {6, 2, 8, 16});
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t g = 0; g < 2; ++g) {
      for (int64_t j = 0; j < 24; ++j) {
        const int64_t page = (b == 0 ? 3 : 0) + j / 8;
        for (int64_t d = 0; d < 16; ++d) {
          k.set(((page * 2 + g) * 8 + j % 8) * 16 + d, c.k.get(((b * 2 + g) * 24 + j) * 16 + d));
          v.set(((page * 2 + g) * 8 + j % 8) * 16 + d, c.v.get(((b * 2 + g) * 24 + j) * 16 + d));
        }
      }
    }
  }
  const Tensor pages = Tensor::index({2, 3}, {3, 4, 5, 0, 1, 2});
  c.call.k = describe(k);
  c.call.v = describe(v);
  c.call.page_table = describe(pages);
  c.call.page_size = 8;
  c.call.max_key = 24;
  char message[256] = "";
  size_t bytes = 0;
  const auto forward = [&] {
    ASSERT_EQ(flashloom_attention_forward_workspace(&c.call, &bytes, message, sizeof(message)), 0)
        << message;
    const Workspace workspace(static_cast<int64_t>(bytes));
    c.call.workspace = workspace.span().data();
    c.call.workspace_bytes = bytes;
    ASSERT_EQ(flashloom_attention_forward(&c.call, message, sizeof(message)), 0) << message;
  };
  c.call.splits = 1;
  forward();
  const Plain own;
  AttentionOptions options;
  options.visibility.right = 0;
  options.execution.splits = 1;
  attention_test::forward({.out = own.out, .lse = own.lse}, {own.q, own.k, own.v}, options);
  EXPECT_LE(distance(c.out, own.out), 1e-6);

  const Tensor threshold = std::move(Tensor(DType::f32, {4, 1}).fill(0.5));
  const Tensor kept(DType::i32, {2, 4, 2, 1});
  const Tensor mass(DType::f32, {2, 4, 20});
  c.call.gate_kind = 1;
  c.call.gate_rows = 16;
  c.call.gate_keys = 8;
  c.call.gate_threshold = describe(threshold);
  c.call.gate_kept = describe(kept);
  c.call.gate_dropped_mass = describe(mass);
  forward();
  const Tensor own_kept(DType::i32, {2, 4, 2, 1});
  const Tensor own_mass(DType::f32, {2, 4, 20});
  options.gate = {.kind = AttentionGate::Kind::absolute,
                  .threshold = threshold,
                  .rows = 16,
                  .keys = 8,
                  .kept = own_kept,
                  .dropped_mass = own_mass};
  attention_test::forward({.out = own.out, .lse = own.lse}, {own.q, own.k, own.v}, options);
  EXPECT_TRUE(kept.same_bits(own_kept));
  EXPECT_LE(distance(c.out, own.out), 1e-6);
}

TEST(FlashloomAttention, TakesStructsOfOtherHeaders) {
  Plain now;
  ASSERT_EQ(now.run(), "");
  Plain old;
  old.call.size = offsetof(FlashloomAttention, entropy);
  old.call.softcap = 0.001f;  // behind the end of the old struct: never read
  ASSERT_EQ(old.run(), "");
  EXPECT_TRUE(old.out.same_bits(now.out));
  EXPECT_TRUE(old.dk.same_bits(now.dk));

  struct {
    FlashloomAttention known;
    int64_t later;
  } newer = {now.call, 0};

  newer.known.size = sizeof(newer);
  char message[256] = "";
  size_t bytes = 0;
  EXPECT_EQ(flashloom_attention_forward_workspace(&newer.known, &bytes, message, sizeof(message)),
            0)
      << message;
  newer.later = 1;
  EXPECT_EQ(flashloom_attention_forward_workspace(&newer.known, &bytes, message, sizeof(message)),
            1);
  EXPECT_NE(std::string(message).find("newer header"), std::string::npos) << message;
  now.call.size = 8;
  EXPECT_EQ(flashloom_attention_forward_workspace(&now.call, &bytes, message, sizeof(message)), 1);
  EXPECT_NE(std::string(message).find("size"), std::string::npos) << message;
}

TEST(FlashloomAttention, SaysTheBackendAndRefusesWhatItDoesNotKnow) {
  Plain c;
  char message[256] = "old";
  int32_t backend = 0;
  ASSERT_EQ(flashloom_attention_forward_backend(&c.call, &backend, message, sizeof(message)), 0);
  EXPECT_EQ(backend, static_cast<int32_t>(AttentionBackend::cpu));
  EXPECT_STREQ(message, "");
  c.call.backend = 4;
  ASSERT_EQ(flashloom_attention_backward_backend(&c.call, &backend, message, sizeof(message)), 2);
  EXPECT_NE(std::string(message).find("sm90"), std::string::npos) << message;
  c.call.backend = 5;
  EXPECT_EQ(flashloom_attention_forward_backend(&c.call, &backend, message, sizeof(message)), 1);
  c.call.backend = 0;
  c.call.gate_kind = 3;
  EXPECT_EQ(flashloom_attention_forward_backend(&c.call, &backend, message, sizeof(message)), 1);
  c.call.gate_kind = 0;
  c.call.device_kind = 2;
  EXPECT_EQ(flashloom_attention_forward_backend(&c.call, &backend, message, sizeof(message)), 1);
}

TEST(FlashloomAttention, MergesPartsAndReadsTheStatusWord) {
  const Tensor parts = random(DType::f32, {3, 2, 4, 5, 8}, 1);
  const Tensor part_lse = random(DType::f32, {3, 2, 4, 5}, 2);
  const Tensor sinks = random(DType::f32, {4}, 3);
  const Tensor out(DType::bf16, {2, 4, 5, 8});
  const Tensor lse(DType::f32, {2, 4, 5});
  FlashloomAttentionMerge call = {};
  call.size = sizeof(call);
  call.out = describe(out);
  call.lse = describe(lse);
  call.parts = describe(parts);
  call.part_lse = describe(part_lse);
  call.sinks = describe(sinks);
  char message[256] = "";
  ASSERT_EQ(flashloom_attention_merge(&call, message, sizeof(message)), 0) << message;
  const Tensor own_out(DType::bf16, {2, 4, 5, 8});
  const Tensor own_lse(DType::f32, {2, 4, 5});
  attention_merge(own_out, own_lse, parts, part_lse, sinks);
  EXPECT_TRUE(out.same_bits(own_out));
  EXPECT_TRUE(lse.same_bits(own_lse));

  Plain c;
  const Tensor status = Tensor::index({1}, {0});
  c.call.status = describe(status);
  EXPECT_EQ(flashloom_attention_check(&c.call, message, sizeof(message)), 0) << message;
  *status.view().as<int32_t>() = 1;
  EXPECT_EQ(flashloom_attention_check(&c.call, message, sizeof(message)), 1);
}

}  // namespace
}  // namespace flashloom
