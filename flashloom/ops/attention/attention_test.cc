#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/attention_test_case.h"

// The CPU kernels against the float64 reference: shapes, storage, lengths, threads, targets.

namespace flashloom {
namespace {

using attention_test::backward;
using attention_test::Case;
using attention_test::distance;
using attention_test::forward;
using attention_test::Results;
using attention_test::Tensor;
using attention_test::with_backend;

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

TEST(Attention, DecodingEqualsTheReference) {
  const Tensor sinks = std::move(Tensor(DType::f32, {8}).random(11));
  const Tensor slopes = std::move(Tensor(DType::f32, {8}).random(12, 0.01));
  const Tensor used_query = Tensor::index({2}, {1, 3});
  const Tensor used_key = Tensor::index({2}, {1100, 700});
  for (const int64_t queries : {1, 3}) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (int round = 0; round < 4; ++round) {
        SCOPED_TRACE(round);
        Case call = {.batch = 2, .heads = 8, .key_heads = 2, .queries = queries, .keys = 1111};
        call.dim = round == 0 ? 20 : 64;
        call.dtype = dtype;
        call.options.visibility.right = 0;
        if (round == 1) {
          call.options.visibility.left = 600;
          call.options.execution.splits = 3;
          call.options.score = {.softcap = 3, .alibi_slopes = slopes, .sinks = sinks};
        }
        if (round == 2 && queries == 3) {
          call.options.sequences = {.used_query = used_query, .used_key = used_key};
          call.options.score.sinks = sinks;
        }
        if (round == 3) {
          call.options.positions.offset = -1;  // the first query sees nothing
        }
        call.expect_equal_to_reference(false);
      }
    }
  }
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

TEST(Attention, MemoryIsLinearInTheLength) {
  const auto bytes = [](int64_t length) {
    const ConstTensorView rows(static_cast<const void*>(nullptr), DType::f32, {2, 4, length, 64});
    const TensorView out(static_cast<void*>(nullptr), DType::f32, {2, 4, length, 64});
    const TensorView lse(static_cast<void*>(nullptr), DType::f32, {2, 4, length});
    return std::array{
        attention_forward_workspace_bytes({.out = out, .lse = lse}, {rows, rows, rows}),
        attention_backward_workspace_bytes({.dq = out, .dk = out, .dv = out}, {rows, rows, rows},
                                           {.out = rows, .lse = lse, .dout = rows})};
  };
  const auto small = bytes(1 << 12);
  const auto large = bytes(1 << 20);
  EXPECT_LE(large[0], small[0] + 1024) << "a worker's tiles";
  EXPECT_LE(large[1], 256 * small[1]);
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
