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
