#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/attention_test_case.h"

// The CPU kernels against the float64 reference.

namespace flashloom {
namespace {

using attention_test::backward;
using attention_test::distance;
using attention_test::forward;
using attention_test::Tensor;
using attention_test::with_backend;

// Runs body once on every instruction set that this machine has, the lesser ones too.
template <class Body>
void for_each_target(Body body) {
  for (const int64_t target : {HWY_AVX3, HWY_AVX2, HWY_SSE4, HWY_STATIC_TARGET}) {
    hwy::SetSupportedTargetsForTest(0);
    if ((hwy::SupportedTargets() & target) == 0) {
      continue;
    }
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    body();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

struct Results {
  Tensor out, lse, entropy, dq, dk, dv, dsinks, dbias;
};

// A call with random tensors, run forward and backward on one backend after the other.
struct Case {
  int64_t batch = 1, heads = 2, key_heads = 1, queries = 50, keys = 50, dim = 16, value_dim = 16;
  DType dtype = DType::f32;
  AttentionOptions options = {};
  bool with_dlse = false;
  bool with_entropy = false;
  float entropy_order = 1;
  std::vector<int32_t> packed_queries = {};  // offsets, for packed tensors
  std::vector<int32_t> packed_keys = {};

  Results run(AttentionBackend backend, bool with_backward = true) const {
    const bool packed = !packed_queries.empty();
    const auto rows = [&](int64_t n, int64_t h, int64_t width) {
      std::vector<int64_t> shape = packed ? std::vector{h, n} : std::vector{batch, h, n};
      if (width > 0) {
        shape.push_back(width);
      }
      return shape;
    };
    const Tensor q = std::move(Tensor(dtype, rows(queries, heads, dim)).random(1));
    const Tensor k = std::move(Tensor(dtype, rows(keys, key_heads, dim)).random(2));
    const Tensor v = std::move(Tensor(dtype, rows(keys, key_heads, value_dim)).random(3));
    const Tensor dout = std::move(Tensor(dtype, rows(queries, heads, value_dim)).random(4));
    const Tensor dlse = std::move(Tensor(DType::f32, rows(queries, heads, 0)).random(5));
    const Tensor dentropy = std::move(Tensor(DType::f32, rows(queries, heads, 0)).random(6));
    AttentionOptions call = with_backend(options, backend);
    const Tensor cu_query =
        Tensor::index({static_cast<int64_t>(packed_queries.size())}, packed_queries);
    const Tensor cu_key = Tensor::index({static_cast<int64_t>(packed_keys.size())}, packed_keys);
    if (packed) {
      call.sequences.cu_query = cu_query;
      call.sequences.cu_key = cu_key;
      call.sequences.max_query = longest(packed_queries);
      call.sequences.max_key = longest(packed_keys);
    }
    Results results;
    results.out = Tensor(dtype, rows(queries, heads, value_dim));
    results.lse = Tensor(DType::f32, rows(queries, heads, 0));
    AttentionOutputs outputs = {.out = results.out, .lse = results.lse};
    if (with_entropy) {
      results.entropy = Tensor(DType::f32, rows(queries, heads, 0));
      outputs.entropy = results.entropy;
      outputs.entropy_order = entropy_order;
    }
    forward(outputs, {q, k, v}, call);
    if (!with_backward) {
      return results;
    }
    results.dq = Tensor(dtype, rows(queries, heads, dim));
    results.dk = Tensor(dtype, rows(keys, key_heads, dim));
    results.dv = Tensor(dtype, rows(keys, key_heads, value_dim));
    AttentionGradients gradients = {.dq = results.dq, .dk = results.dk, .dv = results.dv};
    if (options.score.sinks) {
      results.dsinks = Tensor(DType::f32, {heads});
      gradients.dsinks = results.dsinks;
    }
    if (options.score.bias) {
      const ConstTensorView& bias = options.score.bias;
      results.dbias = Tensor(DType::f32, {bias.dim(0), bias.dim(1), bias.dim(2), bias.dim(3)});
      gradients.dbias = results.dbias;
    }
    AttentionSaved saved = {.out = results.out, .lse = results.lse, .dout = dout};
    if (with_dlse) {
      saved.dlse = dlse;
    }
    if (with_entropy) {
      saved.entropy = results.entropy;
      saved.dentropy = dentropy;
      saved.entropy_order = entropy_order;
    }
    backward(gradients, {q, k, v}, saved, call);
    return results;
  }

  static int64_t longest(const std::vector<int32_t>& offsets) {
    int32_t length = 0;
    for (size_t i = 1; i < offsets.size(); ++i) {
      length = std::max(length, offsets[i] - offsets[i - 1]);
    }
    return length;
  }

  // Inputs are O(1), so rounding errors are those of sums of sqrt(n) terms of that size; gradients
  // sum twice, with factors up to |dout| sqrt(E). Half storage rounds the results, and the saved
  // output of the backward pass.
  void expect_equal_to_reference(bool with_backward = true) const {
    const Results ours = run(AttentionBackend::cpu, with_backward);
    const Results reference = run(AttentionBackend::reference, with_backward);
    const double unit = dtype == DType::bf16 ? 0x1p-8 : dtype == DType::f16 ? 0x1p-11 : 0x1p-24;
    const double size = std::sqrt(static_cast<double>(keys));
    const double gradient_size =
        std::sqrt(static_cast<double>(queries * heads)) * std::sqrt(static_cast<double>(value_dim));
    compare(ours.out, reference.out, unit * (16 + 2 * std::sqrt(static_cast<double>(dim))), "out");
    compare(ours.lse, reference.lse, 4e-7 * (8 + size), "lse");
    if (with_entropy) {
      compare(ours.entropy, reference.entropy, 1e-6 * (8 + size), "entropy");
    }
    if (with_backward) {
      compare(ours.dq, reference.dq, 8 * unit * gradient_size, "dq");
      compare(ours.dk, reference.dk, 8 * unit * gradient_size, "dk");
      compare(ours.dv, reference.dv, 8 * unit * gradient_size, "dv");
    }
    if (options.score.sinks && with_backward) {
      compare(ours.dsinks, reference.dsinks, 8 * unit * gradient_size * size, "dsinks");
    }
    if (options.score.bias && with_backward) {
      compare(ours.dbias, reference.dbias, 8 * unit * gradient_size, "dbias");
    }
  }

  static void compare(const Tensor& ours, const Tensor& reference, double bound, const char* name) {
    EXPECT_LE(distance(ours, reference), bound) << name;
  }
};

TEST(Attention, EqualsTheReferenceAtEveryLength) {
  for (const int64_t length : {1, 2, 23, 24, 25, 95, 97, 130}) {
    for (const int64_t right : {-1, 0}) {
      SCOPED_TRACE(length * 10 + right);
      Case call = {.batch = 2, .heads = 4, .key_heads = 2, .queries = length, .keys = length};
      call.options.visibility.right = right;
      call.expect_equal_to_reference();
    }
  }
}

TEST(Attention, EqualsTheReferenceAtEveryHeadDimension) {
  for (const int64_t dim : {1, 8, 15, 40, 64, 80, 128, 256, 300}) {
    SCOPED_TRACE(dim);
    Case call = {.dim = dim, .value_dim = dim};
    call.options.visibility.right = 0;
    call.expect_equal_to_reference();
  }
}

TEST(Attention, ValuesMayHaveTheirOwnDimension) {
  Case call = {.dim = 24, .value_dim = 56};
  call.expect_equal_to_reference();
}

TEST(Attention, EqualsTheReferenceOnEveryTarget) {
  for_each_target([] {
    Case call = {.batch = 2, .heads = 4, .key_heads = 2, .queries = 100, .keys = 131, .dim = 40};
    call.options.visibility.right = 0;
    call.expect_equal_to_reference();
  });
}

TEST(Attention, EqualsTheReferenceInHalfStorage) {
  for (const DType dtype : {DType::bf16, DType::f16}) {
    SCOPED_TRACE(dtype_name(dtype));
    Case call = {.heads = 3, .queries = 110, .keys = 110, .dim = 20, .dtype = dtype};
    call.options.visibility.right = 0;
    call.expect_equal_to_reference();
  }
}

TEST(Attention, PackedDocumentsEqualTheReference) {
  Case call = {.heads = 6, .key_heads = 2, .queries = 260, .keys = 275, .dim = 16};
  call.packed_queries = {0, 1, 1, 31, 150, 260};
  call.packed_keys = {0, 1, 11, 41, 165, 275};
  call.options.visibility.right = 0;
  call.expect_equal_to_reference();
}

TEST(Attention, WindowsEqualTheReference) {
  const std::array<int64_t, 2> windows[] = {{3, 0}, {0, 0}, {40, 17}, {-1, 5}, {9, -1}};
  for (const auto& [left, right] : windows) {
    for (const int64_t offset : {-60, 0, 30}) {
      SCOPED_TRACE(std::to_string(left) + ", " + std::to_string(right) + " at " +
                   std::to_string(offset));
      Case call = {.queries = 130, .keys = 170};
      call.options.visibility = {left, right};
      call.options.positions.offset = offset;
      call.expect_equal_to_reference();
    }
  }
}

TEST(Attention, UsedLengthsHidePaddingOfAnyContent) {
  // The tensors of a Case end behind the used rows with ordinary numbers; the reference never reads
  // those either, so NaN there is tested by itself.
  const Tensor used_query = Tensor::index({3}, {0, 17, 60});
  const Tensor used_key = Tensor::index({3}, {30, 0, 51});
  Case call = {.batch = 3, .heads = 4, .key_heads = 2, .queries = 60, .keys = 70};
  call.options.sequences = {.used_query = used_query, .used_key = used_key};
  call.options.visibility.right = 0;
  call.expect_equal_to_reference();
}

TEST(Attention, NanBehindTheEndIsInvisible) {
  const Tensor used = Tensor::index({1}, {20});
  AttentionOptions options;
  options.sequences = {.used_query = used, .used_key = used};
  Tensor q(DType::f32, {1, 1, 33, 16});  // filled with NaN
  Tensor k(DType::f32, {1, 1, 33, 16});
  Tensor v(DType::f32, {1, 1, 33, 16});
  Tensor dout(DType::f32, {1, 1, 33, 16});
  for (Tensor* tensor : {&q, &k, &v, &dout}) {
    for (int64_t i = 0; i < 20 * 16; ++i) {
      tensor->set(i, std::sin(static_cast<double>(i)));
    }
  }
  Tensor out(DType::f32, {1, 1, 33, 16});
  Tensor lse(DType::f32, {1, 1, 33});
  Tensor dq(DType::f32, {1, 1, 33, 16});
  Tensor dk(DType::f32, {1, 1, 33, 16});
  Tensor dv(DType::f32, {1, 1, 33, 16});
  forward({.out = out, .lse = lse}, {q, k, v}, with_backend(options, AttentionBackend::cpu));
  backward({.dq = dq, .dk = dk, .dv = dv}, {q, k, v}, {.out = out, .lse = lse, .dout = dout},
           with_backend(options, AttentionBackend::cpu));
  for (const Tensor* tensor : {&out, &dq, &dk, &dv}) {
    for (int64_t i = 0; i < 33 * 16; ++i) {
      ASSERT_TRUE(std::isfinite(tensor->get(i))) << i;
      ASSERT_TRUE(i < 20 * 16 || tensor->get(i) == 0) << i;
    }
  }
  EXPECT_EQ(lse.get(20), -std::numeric_limits<double>::infinity());
}

TEST(Attention, GradientsFlowIntoTheLse) {
  Case call = {.queries = 60, .keys = 60, .with_dlse = true};
  call.options.visibility.right = 0;
  call.expect_equal_to_reference();
}

TEST(Attention, SoftcapSinksAlibiAndBiasEqualTheReference) {
  const Tensor sinks = std::move(Tensor(DType::f32, {4}).random(11));
  const Tensor slopes = std::move(Tensor(DType::f32, {4}).random(12, 0.1));
  const Tensor own_slopes = std::move(Tensor(DType::f32, {2, 4}).random(12, 0.1));
  const std::vector<int64_t> shapes[] = {
      {2, 4, 70, 110}, {1, 4, 1, 110}, {2, 1, 70, 110}, {1, 1, 70, 110}};
  int round = 0;
  for (const auto& shape : shapes) {
    SCOPED_TRACE(round);
    const DType dtype = round == 1 ? DType::bf16 : round == 2 ? DType::f16 : DType::f32;
    const Tensor bias = std::move(Tensor(dtype, shape).random(13));
    Case call = {.batch = 2, .heads = 4, .key_heads = 2, .queries = 70, .keys = 110};
    call.options.visibility.right = 0;
    call.options.score = {.softcap = round < 2 ? 2.0F : 0.0F,
                          .alibi_slopes = round == 0 ? slopes : own_slopes,
                          .bias = bias,
                          .sinks = sinks};
    call.with_dlse = true;
    call.expect_equal_to_reference();
    ++round;
  }
}

TEST(Attention, AnEmptyRowIsTheSink) {
  const Tensor sinks = std::move(Tensor(DType::f32, {2}).fill(-3));
  Case call = {.heads = 2, .queries = 30, .keys = 30};
  call.options.visibility.right = 0;
  call.options.positions.offset = -10;
  call.options.score.sinks = sinks;
  call.with_entropy = true;
  call.expect_equal_to_reference();
  const Results results = call.run(AttentionBackend::cpu);
  EXPECT_EQ(results.lse.get(0), -3);
  EXPECT_EQ(results.out.get(0), 0);
}

TEST(Attention, EntropyAndItsGradientEqualTheReference) {
  const Tensor sinks = std::move(Tensor(DType::f32, {2}).random(11));
  for (const float order : {1.0F, 0.5F, 2.0F}) {
    for (const bool with_sinks : {false, true}) {
      SCOPED_TRACE(order);
      Case call = {.queries = 100, .keys = 140, .with_entropy = true, .entropy_order = order};
      call.options.visibility.right = 0;
      if (with_sinks) {
        call.options.score.sinks = sinks;
      }
      call.expect_equal_to_reference();
    }
  }
}

TEST(Attention, DropoutEqualsTheReference) {
  const uint64_t seed = 7;
  const uint64_t offset = 3;
  for (const int64_t right : {-1, 0}) {
    Case call = {.batch = 2, .heads = 4, .key_heads = 2, .queries = 70, .keys = 81};
    call.options.visibility.right = right;
    call.options.dropout = {.probability = 0.25F,
                            .seed = ConstTensorView(&seed, {1}),
                            .offset = ConstTensorView(&offset, {1})};
    call.expect_equal_to_reference();
  }
}

TEST(Attention, DropoutKeepsTheMean) {
  // With equal scores and v = 1, out is the share of kept keys over the probability of keeping.
  const uint64_t seed = 7;
  AttentionOptions options;
  options.dropout = {.probability = 0.3F, .seed = ConstTensorView(&seed, {1})};
  const Tensor zero = std::move(Tensor(DType::f32, {1, 1, 300, 16}).fill(0));
  const Tensor one = std::move(Tensor(DType::f32, {1, 1, 300, 16}).fill(1));
  Tensor out(DType::f32, {1, 1, 300, 16});
  forward({.out = out}, {zero, zero, one}, with_backend(options, AttentionBackend::cpu));
  double sum = 0;
  for (int64_t i = 0; i < 300; ++i) {
    sum += out.get(i * 16) / 300;
  }
  // 90,000 draws of variance 0.3 / 0.7: deviation of the mean 2.2e-3.
  EXPECT_NEAR(sum, 1, 0.01);
}

// A block mask with full, partial and absent blocks, both ways.
struct RandomBlocks {
  Tensor offsets, columns, partial, column_offsets, rows, transposed_partial;
  std::vector<uint8_t> bits;
  AttentionBlocks blocks;

  RandomBlocks(int64_t queries, int64_t keys, int64_t block_rows, int64_t block_keys, int64_t heads,
               uint64_t seed) {
    RandomSequence random(seed, RandomStream::test);
    const int64_t height = tile_count(queries, block_rows);
    const int64_t width = tile_count(keys, block_keys);
    std::vector<std::vector<int>> kinds;  // of (head x block row): -2 absent, -1 full, n partial
    std::vector<int32_t> row_values;
    std::vector<int32_t> column_values;
    int partials = 0;
    int64_t entries = 0;
    for (int64_t h = 0; h < heads; ++h) {
      int64_t count = 0;
      for (int64_t r = 0; r < height; ++r) {
        kinds.emplace_back();
        for (int64_t c = 0; c < width; ++c) {
          const uint32_t draw = random.below(3);
          kinds.back().push_back(draw == 0 ? -2 : draw == 1 ? -1 : partials++);
          count += draw == 0 ? 0 : 1;
        }
      }
      entries = std::max(entries, count);
    }
    for (int64_t i = 0; i < partials * block_rows * block_keys / 8; ++i) {
      bits.push_back(static_cast<uint8_t>(random.bits()));
    }
    const auto fill = [&](Tensor& starts, Tensor& indices, Tensor& kind, bool by_row) {
      const int64_t outer = by_row ? height : width;
      const int64_t inner = by_row ? width : height;
      std::vector<int32_t> start_values;
      std::vector<int32_t> index_values(static_cast<size_t>(heads * entries), 0);
      std::vector<int32_t> kind_values(static_cast<size_t>(heads * entries), -1);
      for (int64_t h = 0; h < heads; ++h) {
        int32_t at = 0;
        for (int64_t o = 0; o < outer; ++o) {
          start_values.push_back(at);
          for (int64_t i = 0; i < inner; ++i) {
            const int value =
                by_row ? kinds[static_cast<size_t>(h * height + o)][static_cast<size_t>(i)]
                       : kinds[static_cast<size_t>(h * height + i)][static_cast<size_t>(o)];
            if (value > -2) {
              index_values[static_cast<size_t>(h * entries + at)] = static_cast<int32_t>(i);
              kind_values[static_cast<size_t>(h * entries + at)] = value;
              ++at;
            }
          }
        }
        start_values.push_back(at);
      }
      starts = Tensor::index({1, heads, outer + 1}, start_values);
      indices = Tensor::index({1, heads, entries}, index_values);
      kind = Tensor::index({1, heads, entries}, kind_values);
    };
    fill(offsets, columns, partial, true);
    fill(column_offsets, rows, transposed_partial, false);
    blocks = {.block_rows = block_rows,
              .block_keys = block_keys,
              .row_offsets = offsets,
              .columns = columns,
              .partial = partial,
              .bits = ConstTensorView(bits.data(), {partials, block_rows, block_keys / 8}),
              .column_offsets = column_offsets,
              .rows = rows,
              .transposed_partial = transposed_partial};
  }
};

TEST(Attention, BlockMasksEqualTheReference) {
  const std::array<int64_t, 2> sizes[] = {{16, 32}, {64, 64}, {128, 128}, {20, 40}};
  for (const auto& [rows, keys] : sizes) {
    for (const int64_t heads : {1, 4}) {
      for (const int64_t right : {-1, 0}) {
        SCOPED_TRACE(std::to_string(rows) + " x " + std::to_string(keys) + ", heads " +
                     std::to_string(heads));
        const RandomBlocks mask(200, 230, rows, keys, heads, 5);
        Case call = {.batch = 2, .heads = 4, .key_heads = 2, .queries = 200, .keys = 230};
        call.options.visibility.right = right;
        call.options.blocks = mask.blocks;
        call.expect_equal_to_reference();
      }
    }
  }
}

// Rows sorted by bucket with ascending positions in each, padded with 2^31 - 1.
struct RandomBuckets {
  Tensor query, key, query_offsets, key_offsets, output;

  RandomBuckets(int64_t batch, int64_t heads, int64_t key_heads, int64_t queries, int64_t keys) {
    RandomSequence random(9, RandomStream::test);
    std::vector<int32_t> outputs;
    const auto fill = [&](int64_t count, int64_t rows, Tensor& positions, Tensor& offsets,
                          bool with_outputs) {
      std::vector<int32_t> position_values;
      std::vector<int32_t> offset_values;
      for (int64_t n = 0; n < count; ++n) {
        std::array<std::vector<int32_t>, 3> buckets;
        for (int32_t i = 0; i < rows - 6; ++i) {
          buckets[random.below(3)].push_back(i);
        }
        int32_t used = 0;
        for (size_t b = 0; b < 3; ++b) {
          offset_values.push_back(used);
          if (b < 2 || rows > 0) {
            buckets[b].insert(buckets[b].end(), 2, 0x7fffffff);
          }
          for (const int32_t position : buckets[b]) {
            position_values.push_back(position);
            if (with_outputs) {
              outputs.push_back(position == 0x7fffffff ? -1 : position);
            }
            ++used;
          }
        }
        offset_values.push_back(used);
      }
      const int64_t group = count / batch;
      positions = Tensor::index({batch, group, rows}, position_values);
      offsets = Tensor::index({batch, group, 4}, offset_values);
    };
    fill(batch * heads, queries, query, query_offsets, true);
    fill(batch * key_heads, keys, key, key_offsets, false);
    output = Tensor::index({batch, heads, queries}, outputs);
  }
};

TEST(Attention, BucketsPositionsAndOutputRowsEqualTheReference) {
  const RandomBuckets rows(2, 4, 2, 150, 170);
  for (const bool exclude_self : {false, true}) {
    Case call = {.batch = 2, .heads = 4, .key_heads = 2, .queries = 150, .keys = 170};
    call.options.visibility.right = 0;
    call.options.positions = {.query = rows.query,
                              .key = rows.key,
                              .output_index = rows.output,
                              .query_bucket_offsets = rows.query_offsets,
                              .key_bucket_offsets = rows.key_offsets,
                              .exclude_self = exclude_self};
    call.with_dlse = true;
    call.with_entropy = true;
    call.expect_equal_to_reference();
  }
}

TEST(Attention, DroppedRowsEqualTheReference) {
  // Query and key dropping: ascending positions with gaps, counts, no buckets.
  std::vector<int32_t> positions;
  for (int n = 0; n < 2; ++n) {
    for (int i = 0; i < 100; ++i) {
      positions.push_back(3 * i + (i * i + n) % 3);
    }
  }
  const Tensor index = Tensor::index({1, 2, 100}, positions);
  const Tensor counts = Tensor::index({1, 2}, {100, 61});
  Case call = {.heads = 2, .key_heads = 2, .queries = 100, .keys = 100};
  call.options.visibility = {.left = 77, .right = 0};
  call.options.positions = {
      .query = index, .key = index, .query_count = counts, .key_count = counts};
  call.expect_equal_to_reference();
}

TEST(Attention, PagedKeysEqualTheReference) {
  const Tensor k = std::move(Tensor(DType::f32, {9, 2, 16, 24}).random(1));
  const Tensor v = std::move(Tensor(DType::f32, {9, 2, 16, 24}).random(2));
  const Tensor q = std::move(Tensor(DType::f32, {2, 4, 3, 24}).random(3));
  const Tensor pages = Tensor::index({2, 4}, {3, 0, 8, -1, 7, 1, 2, 5});
  const Tensor used = Tensor::index({2}, {37, 64});
  AttentionOptions options;
  options.visibility.right = 0;
  options.sequences = {.used_key = used, .page_table = pages, .max_key = 64, .page_size = 16};
  Tensor out(DType::f32, {2, 4, 3, 24});
  Tensor expected(DType::f32, {2, 4, 3, 24});
  forward({.out = out}, {q, k, v}, with_backend(options, AttentionBackend::cpu));
  forward({.out = expected}, {q, k, v}, with_backend(options, AttentionBackend::reference));
  EXPECT_LE(distance(out, expected), 2e-6);
}

TEST(Attention, AnyStridesGiveTheSameBits) {
  // (B, S, H, D) memory seen as (B, H, S, D).
  const Tensor memory = std::move(Tensor(DType::f32, {2, 40, 3, 3, 16}).random(1));
  const Tensor contiguous(DType::f32, {3, 2, 3, 40, 16});
  AttentionInputs strided;
  AttentionInputs dense;
  ConstTensorView* views[] = {&strided.q, &strided.k, &strided.v};
  ConstTensorView* copies[] = {&dense.q, &dense.k, &dense.v};
  for (int n = 0; n < 3; ++n) {
    const TensorView view = memory.view().select(2, n).transpose(1, 2);
    const TensorView copy = contiguous.view().select(0, n);
    for (int64_t b = 0; b < 2; ++b) {
      for (int64_t h = 0; h < 3; ++h) {
        for (int64_t i = 0; i < 40; ++i) {
          std::copy_n(view.select(0, b).select(0, h).select(0, i).as<float>(), 16,
                      copy.select(0, b).select(0, h).select(0, i).as<float>());
        }
      }
    }
    *views[n] = view;
    *copies[n] = copy;
  }
  Tensor out(DType::f32, {2, 3, 40, 16});
  Tensor expected(DType::f32, {2, 3, 40, 16});
  forward({.out = out}, strided, with_backend({}, AttentionBackend::cpu));
  forward({.out = expected}, dense, with_backend({}, AttentionBackend::cpu));
  EXPECT_TRUE(out.same_bits(expected));
}

TEST(Attention, BitsDoNotDependOnThreads) {
  Case call = {.batch = 2, .heads = 4, .key_heads = 2, .queries = 200, .keys = 200};
  call.options.visibility.right = 0;
  set_thread_count(1);
  const Results one = call.run(AttentionBackend::cpu);
  for (const int threads : {2, 3, 7}) {
    set_thread_count(threads);
    const Results many = call.run(AttentionBackend::cpu);
    EXPECT_TRUE(one.out.same_bits(many.out));
    EXPECT_TRUE(one.lse.same_bits(many.lse));
    EXPECT_TRUE(one.dq.same_bits(many.dq));
    EXPECT_TRUE(one.dk.same_bits(many.dk));
    EXPECT_TRUE(one.dv.same_bits(many.dv));
  }
  set_thread_count(0);
}

TEST(Attention, LargeScoresStayExact) {
  // Logits of +-3e4 with a spread of 1: a softmax that does not subtract the maximum overflows.
  Tensor q(DType::f32, {1, 1, 4, 16});
  Tensor k(DType::f32, {1, 1, 30, 16});
  Tensor v(DType::f32, {1, 1, 30, 16});
  q.fill(1);
  v.random(2);
  for (int64_t j = 0; j < 30; ++j) {
    for (int64_t d = 0; d < 16; ++d) {
      k.set(j * 16 + d, d == 0 ? (j % 2 == 0 ? 32768.0 + j : -32768.0) : 0.0);
    }
  }
  AttentionOptions options;
  options.score.scale = 1;
  Tensor out(DType::f32, {1, 1, 4, 16});
  Tensor expected(DType::f32, {1, 1, 4, 16});
  forward({.out = out}, {q, k, v}, with_backend(options, AttentionBackend::cpu));
  forward({.out = expected}, {q, k, v}, with_backend(options, AttentionBackend::reference));
  // Scores in base 2 near 47,000 have units of 2^-8.
  EXPECT_LE(distance(out, expected), 0x1p-7);
}

}  // namespace
}  // namespace flashloom
