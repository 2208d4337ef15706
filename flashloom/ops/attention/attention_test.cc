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
        Tensor q(DType::f32, {2, 6, s, dim}), k(DType::f32, {2, 2, s + 7, dim}),
            v(DType::f32, {2, 2, s + 7, dim});
        q.random(1);
        k.random(2);
        v.random(3);
        Tensor o(DType::f32, {2, 6, s, dim}), o2(DType::f32, {2, 6, s, dim}),
            l(DType::f32, {2, 6, s}), l2(DType::f32, {2, 6, s});
        forward({.out = o, .lse = l}, {q, k, v}, with_backend(options, AttentionBackend::cpu));
        forward({.out = o2, .lse = l2}, {q, k, v},
                with_backend(options, AttentionBackend::reference));
        EXPECT_LT(distance(o, o2), 3e-6) << dim << " " << s;
        EXPECT_LT(distance(l, l2), 3e-6) << dim << " " << s;
        Tensor dout(DType::f32, {2, 6, s, dim});
        dout.random(7);
        auto grads = [&](AttentionBackend backend, Tensor& dq, Tensor& dk, Tensor& dv) {
          dq = Tensor(DType::f32, {2, 6, s, dim});
          dk = Tensor(DType::f32, {2, 2, s + 7, dim});
          dv = Tensor(DType::f32, {2, 2, s + 7, dim});
          attention_test::backward({.dq = dq, .dk = dk, .dv = dv}, {q, k, v},
                                   {.out = o2, .lse = l2, .dout = dout},
                                   with_backend(options, backend));
        };
        Tensor a[3], b[3];
        grads(AttentionBackend::cpu, a[0], a[1], a[2]);
        grads(AttentionBackend::reference, b[0], b[1], b[2]);
        for (int n = 0; n < 3; ++n)
          EXPECT_LT(distance(a[n], b[n]), 2e-5) << n << " " << dim << " " << s << " " << right;
      }
    }
  }
}

}  // namespace
}  // namespace flashloom
