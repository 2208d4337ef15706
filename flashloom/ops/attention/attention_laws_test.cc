#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <utility>
#include <vector>

#include "flashloom/ops/attention/attention_test_case.h"

// What must hold of any attention, tried on the CPU kernels and on the reference.

namespace flashloom {
namespace {

using attention_test::distance;
using attention_test::forward;
using attention_test::Tensor;
using attention_test::with_backend;

constexpr int64_t kHeads = 2;
constexpr int64_t kQueries = 40;
constexpr int64_t kKeys = 60;
constexpr int64_t kDim = 16;

class AttentionLaws : public testing::TestWithParam<AttentionBackend> {
 protected:
  struct Result {
    Tensor out{DType::f32, {1, kHeads, kQueries, kDim}};
    Tensor lse{DType::f32, {1, kHeads, kQueries}};
  };

  Result attend(const ConstTensorView& k, const ConstTensorView& v,
                const AttentionOptions& options = {}) const {
    Result result;
    forward({.out = result.out, .lse = result.lse}, {q_, k, v}, with_backend(options, GetParam()));
    return result;
  }

  static void expect_same(const Result& a, const Result& b) {
    EXPECT_LE(distance(a.out, b.out), 3e-6);
    EXPECT_LE(distance(a.lse, b.lse), 3e-6);
  }

  Tensor q_ = std::move(Tensor(DType::f32, {1, kHeads, kQueries, kDim}).random(1));
  Tensor k_ = std::move(Tensor(DType::f32, {1, kHeads, kKeys, kDim}).random(2));
  Tensor v_ = std::move(Tensor(DType::f32, {1, kHeads, kKeys, kDim}).random(3));
};

TEST_P(AttentionLaws, TheOrderOfKeysDoesNotMatter) {
  std::vector<int64_t> order(kKeys);
  std::iota(order.begin(), order.end(), 0);
  RandomSequence random(5, RandomStream::test);
  for (size_t i = order.size() - 1; i > 0; --i) {
    std::swap(order[i], order[random.below(static_cast<uint32_t>(i + 1))]);
  }
  Tensor k(DType::f32, {1, kHeads, kKeys, kDim});
  Tensor v(DType::f32, {1, kHeads, kKeys, kDim});
  for (int64_t h = 0; h < kHeads; ++h) {
    for (int64_t j = 0; j < kKeys; ++j) {
      for (int64_t d = 0; d < kDim; ++d) {
        const int64_t from = (h * kKeys + order[static_cast<size_t>(j)]) * kDim + d;
        k.set((h * kKeys + j) * kDim + d, k_.get(from));
        v.set((h * kKeys + j) * kDim + d, v_.get(from));
      }
    }
  }
  expect_same(attend(k_, v_), attend(k, v));
}

TEST_P(AttentionLaws, PartsMergeToTheWhole) {
  const Tensor sinks = std::move(Tensor(DType::f32, {kHeads}).random(6));
  AttentionOptions options;
  options.visibility.right = 0;
  options.positions.offset = kKeys - kQueries;
  options.score.sinks = sinks;
  const Result whole = attend(k_, v_, options);
  Tensor parts(DType::f32, {3, 1, kHeads, kQueries, kDim});
  Tensor logs(DType::f32, {3, 1, kHeads, kQueries});
  options.score.sinks = {};
  options.positions.offset = {};
  options.positions.query_start = kKeys - kQueries;
  for (int64_t p = 0; p < 3; ++p) {
    options.positions.key_start = p * 20;
    const Result part =
        attend(k_.view().slice(2, p * 20, 20), v_.view().slice(2, p * 20, 20), options);
    for (int64_t i = 0; i < part.out.size(); ++i) {
      parts.set(p * part.out.size() + i, part.out.get(i));
    }
    for (int64_t i = 0; i < part.lse.size(); ++i) {
      logs.set(p * part.lse.size() + i, part.lse.get(i));
    }
  }
  Result merged;
  attention_merge(merged.out, merged.lse, parts, logs, sinks);
  expect_same(merged, whole);
}

TEST_P(AttentionLaws, AWindowIsAMaskOfItsPairs) {
  AttentionOptions window;
  window.visibility = {.left = 9, .right = 4};
  window.positions.offset = 3;
  Tensor mask(DType::f32, {1, 1, kQueries, kKeys});
  for (int64_t i = 0; i < kQueries; ++i) {
    for (int64_t j = 0; j < kKeys; ++j) {
      const bool visible = j - (i + 3) >= -9 && j - (i + 3) <= 4;
      mask.set(i * kKeys + j, visible ? 0 : -std::numeric_limits<double>::infinity());
    }
  }
  AttentionOptions masked;
  masked.score.bias = mask;
  expect_same(attend(k_, v_, window), attend(k_, v_, masked));
}

TEST_P(AttentionLaws, ASinkIsAKeyOfValueZero) {
  // A key that is orthogonal to nothing: the bias makes its logit, the value is 0.
  Tensor k(DType::f32, {1, kHeads, kKeys + 1, kDim});
  Tensor v(DType::f32, {1, kHeads, kKeys + 1, kDim});
  k.fill(0);
  v.fill(0);
  Tensor bias(DType::f32, {1, kHeads, 1, kKeys + 1});
  bias.fill(0);
  const Tensor sinks = std::move(Tensor(DType::f32, {kHeads}).random(6));
  for (int64_t h = 0; h < kHeads; ++h) {
    bias.set(h * (kKeys + 1) + kKeys, sinks.get(h));
    for (int64_t i = 0; i < kKeys * kDim; ++i) {
      k.set(h * (kKeys + 1) * kDim + i, k_.get(h * kKeys * kDim + i));
      v.set(h * (kKeys + 1) * kDim + i, v_.get(h * kKeys * kDim + i));
    }
  }
  AttentionOptions with_sinks;
  with_sinks.score.sinks = sinks;
  AttentionOptions with_key;
  with_key.score.bias = bias;
  expect_same(attend(k_, v_, with_sinks), attend(k, v, with_key));
}

TEST_P(AttentionLaws, PackedDocumentsAreSeparateCalls) {
  const Tensor offsets = Tensor::index({3}, {0, 15, kQueries});
  const TensorView q = q_.view().select(0, 0);
  const TensorView k = k_.view().select(0, 0).slice(1, 0, kQueries);
  const TensorView v = v_.view().select(0, 0).slice(1, 0, kQueries);
  AttentionOptions options = with_backend({}, GetParam());
  options.visibility.right = 0;
  const Tensor packed(DType::f32, {kHeads, kQueries, kDim});
  AttentionOptions packing = options;
  packing.sequences = {
      .cu_query = offsets, .cu_key = offsets, .max_query = kQueries, .max_key = kQueries};
  forward({.out = packed}, {q, k, v}, packing);
  const Tensor separate(DType::f32, {kHeads, kQueries, kDim});
  const std::pair<int64_t, int64_t> documents[] = {{0, 15}, {15, kQueries - 15}};
  for (const auto& [first, count] : documents) {
    const auto one = [&, f = first, c = count](const TensorView& view) {
      TensorView rows = view.slice(1, f, c);
      // (H, S, D) as a batch of 1
      TensorView batch = rows;
      batch.rank = 4;
      for (int i = 0; i < 3; ++i) {
        batch.shape[static_cast<size_t>(i) + 1] = rows.shape[static_cast<size_t>(i)];
        batch.strides[static_cast<size_t>(i) + 1] = rows.strides[static_cast<size_t>(i)];
      }
      batch.shape[0] = 1;
      return batch;
    };
    forward({.out = one(separate)}, {one(q), one(k), one(v)}, options);
  }
  EXPECT_LE(distance(packed, separate), 2e-6);
}

INSTANTIATE_TEST_SUITE_P(Backends, AttentionLaws,
                         testing::Values(AttentionBackend::cpu, AttentionBackend::reference),
                         [](const auto& test) {
                           return std::string(attention_backend_name(test.param));
                         });

}  // namespace
}  // namespace flashloom
