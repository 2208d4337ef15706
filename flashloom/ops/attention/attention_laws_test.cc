#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "flashloom/ops/attention/attention_test_case.h"
#include "flashloom/ops/attention/random_blocks_for_test.h"

// What must hold of any attention, on random shapes, tried on the CPU kernels and on the reference,
// forward and backward.

namespace flashloom {
namespace {

using attention_test::backward;
using attention_test::distance;
using attention_test::forward;
using attention_test::RandomBlocks;
using attention_test::Tensor;
using attention_test::with_backend;

constexpr double kHidden = -std::numeric_limits<double>::infinity();
constexpr int kRounds = 12;

// A random shape; a few tiles of the kernels at most, so that borders are everywhere.
struct Shape {
  int64_t batch, heads, key_heads, queries, keys, dim, value_dim;

  explicit Shape(RandomSequence& random)
      : batch(1 + random.below(2)),
        key_heads(1 + random.below(2)),
        queries(1 + random.below(220)),
        keys(1 + random.below(300)),
        dim(8 + random.below(60)),
        value_dim(8 + random.below(60)) {
    heads = key_heads * (1 + random.below(3));
  }

  std::string name() const {
    return "B " + std::to_string(batch) + ", H " + std::to_string(heads) + ", G " +
           std::to_string(key_heads) + ", S " + std::to_string(queries) + " x " +
           std::to_string(keys) + ", D " + std::to_string(dim) + ", E " + std::to_string(value_dim);
  }
};

struct Results {
  Tensor out, lse, dq, dk, dv;
};

class AttentionLaws : public testing::TestWithParam<AttentionBackend> {
 protected:
  // Runs a law on random shapes.
  template <class Law>
  void on_random_shapes(Law law) {
    RandomSequence random(17, RandomStream::test);
    for (int round = 0; round < kRounds; ++round) {
      const Shape shape(random);
      SCOPED_TRACE(shape.name());
      set_tensors(shape);
      law(shape, random);
    }
  }

  void set_tensors(const Shape& s) {
    q_ = std::move(Tensor(DType::f32, {s.batch, s.heads, s.queries, s.dim}).random(1));
    k_ = std::move(Tensor(DType::f32, {s.batch, s.key_heads, s.keys, s.dim}).random(2));
    v_ = std::move(Tensor(DType::f32, {s.batch, s.key_heads, s.keys, s.value_dim}).random(3));
    dout_ = std::move(Tensor(DType::f32, {s.batch, s.heads, s.queries, s.value_dim}).random(4));
    dlse_ = std::move(Tensor(DType::f32, {s.batch, s.heads, s.queries}).random(5));
  }

  Results attend(const ConstTensorView& q, const ConstTensorView& k, const ConstTensorView& v,
                 const ConstTensorView& dout, const ConstTensorView& dlse,
                 const AttentionOptions& options) const {
    const AttentionOptions call = with_backend(options, GetParam());
    Results results;
    results.out = like(q, v.dim(-1));
    results.lse = like(q, 0);
    forward({.out = results.out, .lse = results.lse}, {q, k, v}, call);
    results.dq = like(q, q.dim(-1));
    results.dk = like(k, k.dim(-1));
    results.dv = like(v, v.dim(-1));
    backward({.dq = results.dq, .dk = results.dk, .dv = results.dv}, {q, k, v},
             {.out = results.out, .lse = results.lse, .dout = dout, .dlse = dlse}, call);
    return results;
  }

  Results attend(const AttentionOptions& options = {}) const {
    return attend(q_, k_, v_, dout_, dlse_, options);
  }

  // f32, with the rows of a tensor and another width (0: none).
  static Tensor like(const ConstTensorView& rows, int64_t width) {
    std::vector<int64_t> shape(rows.shape.begin(), rows.shape.begin() + rows.rank - 1);
    if (width > 0) {
      shape.push_back(width);
    }
    return Tensor(DType::f32, shape);
  }

  // f32 sums of up to 300 terms of size 1 to 10 in another order.
  static void expect_same(const Results& a, const Results& b) {
    EXPECT_LE(distance(a.out, b.out), 4e-6) << "out";
    EXPECT_LE(distance(a.lse, b.lse), 4e-6) << "lse";
    EXPECT_LE(distance(a.dq, b.dq), 4e-5) << "dq";
    EXPECT_LE(distance(a.dk, b.dk), 1e-4) << "dk";
    EXPECT_LE(distance(a.dv, b.dv), 1e-4) << "dv";
  }

  // Rows of (B, heads, S, width) in another order: to[i] = from[order[i]].
  static Tensor permuted(const Tensor& from, const std::vector<int64_t>& order) {
    const TensorView& view = from.view();
    Tensor to(DType::f32, {view.dim(0), view.dim(1), view.dim(2), view.dim(3)});
    for (int64_t n = 0; n < view.dim(0) * view.dim(1); ++n) {
      for (int64_t i = 0; i < view.dim(2); ++i) {
        for (int64_t c = 0; c < view.dim(3); ++c) {
          const int64_t source = n * view.dim(2) + order[static_cast<size_t>(i)];
          to.set((n * view.dim(2) + i) * view.dim(3) + c, from.get(source * view.dim(3) + c));
        }
      }
    }
    return to;
  }

  Tensor q_, k_, v_, dout_, dlse_;
};

TEST_P(AttentionLaws, TheOrderOfKeysDoesNotMatter) {
  on_random_shapes([&](const Shape& shape, RandomSequence& random) {
    std::vector<int64_t> order(static_cast<size_t>(shape.keys));
    std::iota(order.begin(), order.end(), 0);
    for (size_t i = order.size() - 1; i > 0; --i) {
      std::swap(order[i], order[random.below(static_cast<uint32_t>(i + 1))]);
    }
    Results plain = attend();
    const Results moved =
        attend(q_, permuted(k_, order), permuted(v_, order), dout_, dlse_, AttentionOptions{});
    plain.dk = permuted(plain.dk, order);
    plain.dv = permuted(plain.dv, order);
    expect_same(plain, moved);
  });
}

TEST_P(AttentionLaws, PartsMergeToTheWhole) {
  on_random_shapes([&](const Shape& shape, RandomSequence& random) {
    const Tensor sinks = std::move(Tensor(DType::f32, {shape.heads}).random(6));
    AttentionOptions options;
    options.visibility.right = random.below(2) == 0 ? 0 : -1;
    const int64_t start = shape.keys - shape.queries;
    options.positions.query_start = start;
    options.positions.key_start = 0;
    options.score.sinks = sinks;
    const AttentionOptions whole_call = with_backend(options, GetParam());
    const Tensor whole = like(q_, shape.value_dim);
    const Tensor whole_lse = like(q_, 0);
    forward({.out = whole, .lse = whole_lse}, {q_, k_, v_}, whole_call);

    // Cuts at random places; a part may be empty.
    const int64_t count = 1 + random.below(4);
    std::vector<int64_t> cuts = {0, shape.keys};
    for (int64_t i = 1; i < count; ++i) {
      cuts.push_back(random.below(static_cast<uint32_t>(shape.keys + 1)));
    }
    std::sort(cuts.begin(), cuts.end());
    const Tensor parts(DType::f32,
                       {count, shape.batch, shape.heads, shape.queries, shape.value_dim});
    const Tensor logs(DType::f32, {count, shape.batch, shape.heads, shape.queries});
    options = with_backend(options, GetParam());
    options.score.sinks = {};
    for (int64_t p = 0; p < count; ++p) {
      const int64_t first = cuts[static_cast<size_t>(p)];
      const int64_t length = cuts[static_cast<size_t>(p) + 1] - first;
      options.positions.key_start = first;
      forward({.out = parts.view().select(0, p), .lse = logs.view().select(0, p)},
              {q_, k_.view().slice(2, first, length), v_.view().slice(2, first, length)}, options);
    }
    const Tensor merged = like(q_, shape.value_dim);
    const Tensor merged_lse = like(q_, 0);
    attention_merge(merged, merged_lse, parts, logs, sinks);
    EXPECT_LE(distance(merged, whole), 4e-6);
    EXPECT_LE(distance(merged_lse, whole_lse), 4e-6);
  });
}

TEST_P(AttentionLaws, AWindowIsAMaskOfItsPairs) {
  on_random_shapes([&](const Shape& shape, RandomSequence& random) {
    AttentionOptions window;
    window.visibility = {.left = static_cast<int64_t>(random.below(90)) - 1,
                         .right = static_cast<int64_t>(random.below(90)) - 1};
    const int64_t offset = static_cast<int64_t>(random.below(200)) - 100;
    window.positions.offset = offset;
    Tensor mask(DType::f32, {1, 1, shape.queries, shape.keys});
    for (int64_t i = 0; i < shape.queries; ++i) {
      for (int64_t j = 0; j < shape.keys; ++j) {
        const int64_t ahead = j - (i + offset);
        const bool visible = (window.visibility.left < 0 || ahead >= -window.visibility.left) &&
                             (window.visibility.right < 0 || ahead <= window.visibility.right);
        mask.set(i * shape.keys + j, visible ? 0 : kHidden);
      }
    }
    AttentionOptions masked;
    masked.score.bias = mask;
    expect_same(attend(window), attend(masked));
  });
}

TEST_P(AttentionLaws, ABlockMaskIsAMaskOfItsPairs) {
  on_random_shapes([&](const Shape& shape, RandomSequence& random) {
    const int64_t rows = 8 * (1 + random.below(12));
    const int64_t keys = 8 * (1 + random.below(12));
    const RandomBlocks blocks(shape.queries, shape.keys, rows, keys,
                              random.below(2) == 0 ? 1 : shape.heads, random.bits());
    Tensor mask(DType::f32, {1, shape.heads, shape.queries, shape.keys});
    for (int64_t h = 0; h < shape.heads; ++h) {
      for (int64_t i = 0; i < shape.queries; ++i) {
        for (int64_t j = 0; j < shape.keys; ++j) {
          mask.set((h * shape.queries + i) * shape.keys + j, blocks.keeps(h, i, j) ? 0 : kHidden);
        }
      }
    }
    AttentionOptions sparse;
    sparse.blocks = blocks.blocks;
    AttentionOptions masked;
    masked.score.bias = mask;
    expect_same(attend(sparse), attend(masked));
  });
}

TEST_P(AttentionLaws, ASinkIsAKeyOfValueZero) {
  on_random_shapes([&](const Shape& shape, RandomSequence&) {
    // A key of zeros with value 0; the bias makes its logit.
    Tensor k(DType::f32, {shape.batch, shape.key_heads, shape.keys + 1, shape.dim});
    Tensor v(DType::f32, {shape.batch, shape.key_heads, shape.keys + 1, shape.value_dim});
    k.fill(0);
    v.fill(0);
    const auto copy = [&](const Tensor& from, Tensor& to, int64_t width) {
      for (int64_t n = 0; n < shape.batch * shape.key_heads; ++n) {
        for (int64_t i = 0; i < shape.keys * width; ++i) {
          to.set(n * (shape.keys + 1) * width + i, from.get(n * shape.keys * width + i));
        }
      }
    };
    copy(k_, k, shape.dim);
    copy(v_, v, shape.value_dim);
    const Tensor sinks = std::move(Tensor(DType::f32, {shape.heads}).random(6));
    Tensor bias(DType::f32, {1, shape.heads, 1, shape.keys + 1});
    bias.fill(0);
    for (int64_t h = 0; h < shape.heads; ++h) {
      bias.set(h * (shape.keys + 1) + shape.keys, sinks.get(h));
    }
    AttentionOptions with_sinks;
    with_sinks.score.sinks = sinks;
    AttentionOptions with_key;
    with_key.score.bias = bias;
    const Results a = attend(with_sinks);
    const Results b = attend(q_, k, v, dout_, dlse_, with_key);
    EXPECT_LE(distance(a.out, b.out), 4e-6);
    EXPECT_LE(distance(a.lse, b.lse), 4e-6);
    EXPECT_LE(distance(a.dq, b.dq), 4e-5);
    for (int64_t i = 0; i < shape.keys * shape.dim; ++i) {  // of sequence 0, head 0
      ASSERT_NEAR(a.dk.get(i), b.dk.get(i), 1e-4) << i;
    }
  });
}

TEST_P(AttentionLaws, PackedDocumentsAreSeparateCalls) {
  on_random_shapes([&](const Shape& shape, RandomSequence& random) {
    // Sequence 0 cut into documents; a document may have no query, no key, or neither.
    const int64_t count = 1 + random.below(5);
    const auto cut = [&](int64_t length) {
      std::vector<int32_t> cuts = {0, static_cast<int32_t>(length)};
      for (int64_t i = 1; i < count; ++i) {
        cuts.push_back(static_cast<int32_t>(random.below(static_cast<uint32_t>(length + 1))));
      }
      std::sort(cuts.begin(), cuts.end());
      return cuts;
    };
    const std::vector<int32_t> query_cuts = cut(shape.queries);
    const std::vector<int32_t> key_cuts = cut(shape.keys);
    AttentionOptions options;
    options.visibility.right = 0;
    const auto first = [](const Tensor& tensor) { return tensor.view().select(0, 0); };
    const Tensor cu_query = Tensor::index({count + 1}, query_cuts);
    const Tensor cu_key = Tensor::index({count + 1}, key_cuts);
    AttentionOptions packing = options;
    packing.sequences = {
        .cu_query = cu_query, .cu_key = cu_key, .max_query = shape.queries, .max_key = shape.keys};
    const Results packed =
        attend(first(q_), first(k_), first(v_), first(dout_), first(dlse_), packing);
    for (int64_t n = 0; n < count; ++n) {
      const auto part = [&](const TensorView& view, const std::vector<int32_t>& cuts) {
        const int64_t begin = cuts[static_cast<size_t>(n)];
        TensorView rows = view.slice(1, begin, cuts[static_cast<size_t>(n) + 1] - begin);
        TensorView batch = rows;  // (H, S, ...) as a batch of 1
        batch.rank = rows.rank + 1;
        for (size_t i = 0; i < static_cast<size_t>(rows.rank); ++i) {
          batch.shape[i + 1] = rows.shape[i];
          batch.strides[i + 1] = rows.strides[i];
        }
        batch.shape[0] = 1;
        return batch;
      };
      const Results alone =
          attend(part(first(q_), query_cuts), part(first(k_), key_cuts), part(first(v_), key_cuts),
                 part(first(dout_), query_cuts), part(first(dlse_), query_cuts), options);
      const auto expect_part = [&](const Tensor& all, const Tensor& own,
                                   const std::vector<int32_t>& cuts, double bound) {
        const TensorView rows = part(all.view(), cuts);
        const int64_t width = rows.rank == 4 ? rows.dim(3) : 1;
        for (int64_t h = 0; h < rows.dim(1); ++h) {
          for (int64_t i = 0; i < rows.dim(2) * width; ++i) {
            const double a = rows.select(0, 0).select(0, h).as<float>()[i];
            const double b = own.get(h * rows.dim(2) * width + i);
            ASSERT_TRUE(a == b || std::fabs(a - b) <= bound) << a << " is not " << b;
          }
        }
      };
      expect_part(packed.out, alone.out, query_cuts, 4e-6);
      expect_part(packed.lse, alone.lse, query_cuts, 4e-6);
      expect_part(packed.dq, alone.dq, query_cuts, 4e-5);
      expect_part(packed.dk, alone.dk, key_cuts, 1e-4);
      expect_part(packed.dv, alone.dv, key_cuts, 1e-4);
    }
  });
}

TEST_P(AttentionLaws, PaddingIsInvisible) {
  on_random_shapes([&](const Shape& shape, RandomSequence& random) {
    // NaN behind the end of every sequence, and the same rows alone.
    const int64_t queries = random.below(static_cast<uint32_t>(shape.queries + 1));
    const int64_t keys = random.below(static_cast<uint32_t>(shape.keys + 1));
    const Tensor used_query = Tensor::index(
        {shape.batch},
        std::vector<int32_t>(static_cast<size_t>(shape.batch), static_cast<int32_t>(queries)));
    const Tensor used_key = Tensor::index(
        {shape.batch},
        std::vector<int32_t>(static_cast<size_t>(shape.batch), static_cast<int32_t>(keys)));
    AttentionOptions options;
    options.visibility.right = random.below(2) == 0 ? 0 : -1;
    const auto spoil = [](Tensor& tensor, int64_t used) {
      const TensorView& view = tensor.view();
      const int64_t width = view.rank == 4 ? view.dim(3) : 1;
      for (int64_t n = 0; n < view.dim(0) * view.dim(1); ++n) {
        for (int64_t i = used * width; i < view.dim(2) * width; ++i) {
          tensor.set(n * view.dim(2) * width + i, std::numeric_limits<double>::quiet_NaN());
        }
      }
    };
    spoil(q_, queries);
    spoil(dout_, queries);
    spoil(dlse_, queries);
    spoil(k_, keys);
    spoil(v_, keys);
    AttentionOptions padded = options;
    padded.sequences = {.used_query = used_query, .used_key = used_key};
    const Results all = attend(padded);
    const auto used = [](const Tensor& tensor, int64_t count) {
      return tensor.view().slice(2, 0, count);
    };
    const Results alone = attend(used(q_, queries), used(k_, keys), used(v_, keys),
                                 used(dout_, queries), used(dlse_, queries), options);
    const auto expect_rows = [&](const Tensor& whole, const Tensor& part, int64_t count,
                                 double behind, double bound) {
      const TensorView& view = whole.view();
      const int64_t width = view.rank == 4 ? view.dim(3) : 1;
      for (int64_t n = 0; n < view.dim(0) * view.dim(1); ++n) {
        for (int64_t i = 0; i < view.dim(2) * width; ++i) {
          const double a = whole.get(n * view.dim(2) * width + i);
          const double b = i < count * width ? part.get(n * count * width + i) : behind;
          ASSERT_TRUE(a == b || std::fabs(a - b) <= bound) << a << " is not " << b << " at " << i;
        }
      }
    };
    expect_rows(all.out, alone.out, queries, 0, 4e-6);
    expect_rows(all.lse, alone.lse, queries, kHidden, 4e-6);
    expect_rows(all.dq, alone.dq, queries, 0, 4e-5);
    expect_rows(all.dk, alone.dk, keys, 0, 1e-4);
    expect_rows(all.dv, alone.dv, keys, 0, 1e-4);
  });
}

TEST_P(AttentionLaws, RowsThatSeeNothingAreZero) {
  on_random_shapes([&](const Shape& shape, RandomSequence& random) {
    AttentionOptions options;
    options.visibility = {.left = static_cast<int64_t>(random.below(5)), .right = 0};
    const int64_t offset = -static_cast<int64_t>(random.below(100)) - 1;
    options.positions.offset = offset;
    const Results results = attend(options);
    for (int64_t n = 0; n < shape.batch * shape.heads; ++n) {
      for (int64_t i = 0; i < shape.queries; ++i) {
        const int64_t position = i + offset;
        const bool sees =
            position >= 0 && position - options.visibility.left < shape.keys;  // right is 0
        const int64_t row = n * shape.queries + i;
        ASSERT_EQ(results.lse.get(row) == kHidden, !sees) << i;
        for (int64_t e = 0; e < shape.value_dim; ++e) {
          ASSERT_TRUE(sees || results.out.get(row * shape.value_dim + e) == 0);
        }
        for (int64_t d = 0; d < shape.dim; ++d) {
          ASSERT_TRUE(sees || results.dq.get(row * shape.dim + d) == 0);
        }
      }
    }
  });
}

TEST_P(AttentionLaws, DropoutKeepsTheMean) {
  // With equal scores and v = 1, out is the share of kept pairs over the probability of keeping.
  RandomSequence random(23, RandomStream::test);
  double sum = 0;
  double count = 0;
  for (int round = 0; round < kRounds; ++round) {
    const Shape shape(random);
    const uint64_t seed = random.bits();
    AttentionOptions options = with_backend({}, GetParam());
    options.dropout = {.probability = 0.3F, .seed = ConstTensorView(&seed, {1})};
    set_tensors(shape);
    q_.fill(0);
    v_.fill(1);
    const Tensor out = like(q_, shape.value_dim);
    forward({.out = out}, {q_, k_, v_}, options);
    for (int64_t i = 0; i < shape.batch * shape.heads * shape.queries; ++i) {
      sum += out.get(i * shape.value_dim) * static_cast<double>(shape.keys);
      count += static_cast<double>(shape.keys);
    }
  }
  // Draws of variance 0.3 / 0.7; five deviations.
  EXPECT_NEAR(sum / count, 1, 5 * std::sqrt(0.3 / 0.7 / count));
}

INSTANTIATE_TEST_SUITE_P(Backends, AttentionLaws,
                         testing::Values(AttentionBackend::cpu, AttentionBackend::reference),
                         [](const auto& test) {
                           return std::string(attention_backend_name(test.param));
                         });

}  // namespace
}  // namespace flashloom
