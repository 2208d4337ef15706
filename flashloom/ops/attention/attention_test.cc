#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/attention_test_case.h"

namespace flashloom {
namespace {

using attention_test::distance;
using attention_test::forward;
using attention_test::Tensor;
using attention_test::with_backend;

TEST(Attention, Smoke) {
  for (int64_t dim : {8, 64, 80, 128}) {
    for (int64_t s : {1, 5, 24, 100, 300}) {
      for (int right : {-1, 0}) {
        AttentionOptions options;
        options.visibility.right = right;
        Tensor q(DType::f32, {2, 6, s, dim}), k(DType::f32, {2, 2, s + 7, dim}), v(DType::f32, {2, 2, s + 7, dim});
        q.random(1);
        k.random(2);
        v.random(3);
        Tensor o(DType::f32, {2, 6, s, dim}), o2(DType::f32, {2, 6, s, dim}), l(DType::f32, {2, 6, s}), l2(DType::f32, {2, 6, s});
        forward({.out = o, .lse = l}, {q, k, v}, with_backend(options, AttentionBackend::cpu));
        forward({.out = o2, .lse = l2}, {q, k, v}, with_backend(options, AttentionBackend::reference));
        EXPECT_LT(distance(o, o2), 3e-6) << dim << " " << s;
        EXPECT_LT(distance(l, l2), 3e-6) << dim << " " << s;
      }
    }
  }
}

}  // namespace
}  // namespace flashloom
