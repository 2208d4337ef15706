#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <limits>
#include <memory>
#include <new>
#include <optional>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "flashloom/core/philox.h"
#include "flashloom/ops/attention/attention.h"
#include "flashloom/ops/attention/reference_head.h"

// What the tests of attention share: tensors that own their memory, and calls with their workspace.

namespace flashloom::attention_test {

/// A contiguous tensor, 64-byte aligned, filled with NaN (floats) or 0x7f bytes (indices).
class Tensor {
 public:
  Tensor() = default;

  Tensor(DType dtype, std::initializer_list<int64_t> shape) : Tensor(dtype, std::vector(shape)) {}

  Tensor(DType dtype, const std::vector<int64_t>& shape) {
    view_.dtype = dtype;
    view_.rank = static_cast<int>(shape.size());
    int64_t stride = 1;
    for (size_t i = shape.size(); i-- > 0;) {
      view_.shape[i] = shape[i];
      view_.strides[i] = stride;
      stride *= shape[i];
    }
    bytes_.resize(static_cast<size_t>(view_.bytes()) + 64);
    void* data = bytes_.data();
    size_t space = bytes_.size();
    view_.data = std::align(64, static_cast<size_t>(view_.bytes()), data, space);
    // All ones are NaN in every float type.
    std::memset(view_.data, is_float() ? 0xff : 0x7f, static_cast<size_t>(view_.bytes()));
  }

  /// i32 from values.
  static Tensor index(std::initializer_list<int64_t> shape, const std::vector<int32_t>& values) {
    Tensor tensor(DType::i32, shape);
    std::copy(values.begin(), values.end(), tensor.view_.as<int32_t>());
    return tensor;
  }

  Tensor& fill(double value) {
    for (int64_t i = 0; i < view_.size(); ++i) {
      set(i, value);
    }
    return *this;
  }

  /// Normal with this deviation.
  Tensor& random(uint64_t seed, double deviation = 1) {
    RandomSequence numbers(seed, RandomStream::test);
    for (int64_t i = 0; i < view_.size(); ++i) {
      set(i, deviation * numbers.normal());
    }
    return *this;
  }

  /// The sum of four uniform numbers, with this deviation: 20 times as fast, for large tensors
  /// whose numbers only have to be about normal.
  Tensor& random_sums(uint64_t seed, double deviation = 1) {
    // The variance of four 16-bit numbers.
    const double unit = deviation / std::sqrt(4.0 * 65536 * 65536 / 12);
    with_numbers(*this, [&](auto* numbers) {
      using T = std::remove_pointer_t<decltype(numbers)>;
      for (int64_t i = 0; i < view_.size(); ++i) {
        uint64_t bits = splitmix(seed * 0x9E3779B97F4A7C15u + static_cast<uint64_t>(i));
        int64_t sum = -2 * 65535;
        for (int part = 0; part < 4; ++part, bits >>= 16) {
          sum += static_cast<int64_t>(bits & 0xffff);
        }
        numbers[i] = static_cast<T>(static_cast<float>(unit * static_cast<double>(sum)));
      }
    });
    return *this;
  }

  Tensor as(DType dtype) const {
    Tensor other(dtype,
                 std::vector<int64_t>(view_.shape.begin(), view_.shape.begin() + view_.rank));
    for (int64_t i = 0; i < view_.size(); ++i) {
      other.set(i, get(i));
    }
    return other;
  }

  double get(int64_t i) const { return load_element(view_.data, view_.dtype, i); }

  void set(int64_t i, double value) { store_element(view_.data, view_.dtype, i, value); }

  int64_t size() const { return view_.size(); }

  const TensorView& view() const { return view_; }

  operator TensorView() const { return view_; }  // NOLINT(google-explicit-constructor)

  operator ConstTensorView() const { return view_; }  // NOLINT(google-explicit-constructor)

  bool same_bits(const Tensor& other) const {
    return std::memcmp(view_.data, other.view_.data, static_cast<size_t>(view_.bytes())) == 0;
  }

  Tensor(Tensor&&) = default;
  Tensor& operator=(Tensor&&) = default;

  /// Calls body(pointer to the first of its numbers), typed.
  template <class Body>
  friend void with_numbers(const Tensor& tensor, Body body) {
    switch (tensor.view_.dtype) {
      case DType::f64:
        body(static_cast<double*>(tensor.view_.data));
        return;
      case DType::bf16:
        body(static_cast<bf16*>(tensor.view_.data));
        return;
      case DType::f16:
        body(static_cast<f16*>(tensor.view_.data));
        return;
      case DType::f32:
        body(static_cast<float*>(tensor.view_.data));
        return;
      default:
        ADD_FAILURE() << "numbers of " << dtype_name(tensor.view_.dtype);
    }
  }

 private:
  static uint64_t splitmix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  }

  bool is_float() const {
    return view_.dtype == DType::f32 || view_.dtype == DType::f64 || view_.dtype == DType::bf16 ||
           view_.dtype == DType::f16;
  }

  std::vector<std::byte> bytes_;
  TensorView view_;
};

template <class T>
double number(const T& x) {
  if constexpr (std::is_same_v<T, double>) {
    return x;
  } else {
    return static_cast<float>(x);
  }
}

/// Largest |a - b|; infinite values must agree, NaN anywhere gives NaN.
inline double distance(const Tensor& a, const Tensor& b) {
  double largest = 0;
  with_numbers(a, [&](const auto* left) {
    with_numbers(b, [&](const auto* right) {
      for (int64_t i = 0; i < a.size(); ++i) {
        const auto x = number(left[i]);
        const auto y = number(right[i]);
        if (x == y) {
          continue;
        }
        const double difference = std::fabs(x - y);
        largest = difference > largest || std::isnan(difference) ? difference : largest;
      }
    });
  });
  return largest;
}

/// A workspace of the size that the call asks for, filled with NaN.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) : floats_(DType::f32, {bytes / 4 + 16}), bytes_(bytes) {}

  std::span<std::byte> span() const {
    return {static_cast<std::byte*>(floats_.view().data), static_cast<size_t>(bytes_)};
  }

 private:
  Tensor floats_;
  int64_t bytes_;
};

inline void forward(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                    const AttentionOptions& options = {}) {
  const Workspace workspace(attention_forward_workspace_bytes(outputs, inputs, options));
  attention_forward(outputs, inputs, workspace.span(), options);
}

inline void backward(const AttentionGradients& gradients, const AttentionInputs& inputs,
                     const AttentionSaved& saved, const AttentionOptions& options = {}) {
  const Workspace workspace(attention_backward_workspace_bytes(gradients, inputs, saved, options));
  attention_backward(gradients, inputs, saved, workspace.span(), options);
}

inline AttentionOptions with_backend(AttentionOptions options, AttentionBackend backend) {
  options.execution.backend = backend;
  return options;
}

struct Results {
  Tensor out, lse, entropy, dq, dk, dv, dsinks, dbias;
};

/// Who executes a call on tensors of the CPU: the library here; tests of a GPU copy there and back.
struct Executor {
  virtual ~Executor() = default;

  virtual void forward(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                       const AttentionOptions& options) const {
    attention_test::forward(outputs, inputs, options);
  }

  virtual void backward(const AttentionGradients& gradients, const AttentionInputs& inputs,
                        const AttentionSaved& saved, const AttentionOptions& options) const {
    attention_test::backward(gradients, inputs, saved, options);
  }
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
  double tolerance = 1;  // multiplies all bounds
  uint64_t seed = 1;
  double deviation = 1;                                      // of q and k
  std::optional<DType> gradient_dtype = {};                  // of dq, dk, dv; else `dtype`
  bool accumulate = false;                                   // on gradients that are not zero
  std::function<void(Tensor& rows, char name)> change = {};  // q, k, v, d(out), after drawing

  struct Inputs {
    Tensor q, k, v, dout, dlse, dentropy;
  };

  std::shared_ptr<const Inputs> inputs = {};  // draw(), for several runs; else each run draws
  bool sums = false;                          // draw with random_sums()

  Results run(AttentionBackend backend, bool with_backward = true) const {
    return run(backend, with_backward, Executor(), dtype, gradient_dtype.value_or(dtype));
  }

  /// A tensor's shape; width 0: a number a row.
  std::vector<int64_t> rows(int64_t n, int64_t h, int64_t width) const {
    std::vector<int64_t> shape =
        packed_queries.empty() ? std::vector{batch, h, n} : std::vector{h, n};
    if (width > 0) {
      shape.push_back(width);
    }
    return shape;
  }

  std::shared_ptr<const Inputs> draw(bool with_backward) const {
    const auto tensor = [&](int64_t n, int64_t h, int64_t width, int number, char name) {
      const bool score = name == 'q' || name == 'k';
      Tensor drawn(dtype, rows(n, h, width));
      const uint64_t own = seed * 6 + static_cast<uint64_t>(number) - 6;
      const double size = score ? deviation : 1.0;
      if (sums) {
        drawn.random_sums(own, size);
      } else {
        drawn.random(own, size);
      }
      if (change) {
        change(drawn, name);
      }
      return drawn;
    };
    auto drawn = std::make_shared<Inputs>();
    drawn->q = tensor(queries, heads, dim, 1, 'q');
    drawn->k = tensor(keys, key_heads, dim, 2, 'k');
    drawn->v = tensor(keys, key_heads, value_dim, 3, 'v');
    if (with_backward) {
      drawn->dout = tensor(queries, heads, value_dim, 4, 'd');
      drawn->dlse = std::move(Tensor(DType::f32, rows(queries, heads, 0)).random(seed * 6 - 1));
      drawn->dentropy = std::move(Tensor(DType::f32, rows(queries, heads, 0)).random(seed * 6));
    }
    return drawn;
  }

  /// Results in other dtypes, inputs the same.
  Results run(AttentionBackend backend, bool with_backward, const Executor& executor,
              DType out_dtype, DType dtype_of_gradients) const {
    const bool packed = !packed_queries.empty();
    const std::shared_ptr<const Inputs> drawn = inputs ? inputs : draw(with_backward);
    const auto& [q, k, v, dout, dlse, dentropy] = *drawn;
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
    results.out = Tensor(out_dtype, rows(queries, heads, value_dim));
    results.lse = Tensor(DType::f32, rows(queries, heads, 0));
    AttentionOutputs outputs = {.out = results.out, .lse = results.lse};
    if (with_entropy) {
      results.entropy = Tensor(DType::f32, rows(queries, heads, 0));
      outputs.entropy = results.entropy;
      outputs.entropy_order = entropy_order;
    }
    executor.forward(outputs, {q, k, v}, call);
    if (!with_backward) {
      return results;
    }
    results.dq = Tensor(dtype_of_gradients, rows(queries, heads, dim));
    results.dk = Tensor(dtype_of_gradients, rows(keys, key_heads, dim));
    results.dv = Tensor(dtype_of_gradients, rows(keys, key_heads, value_dim));
    AttentionGradients gradients = {.dq = results.dq, .dk = results.dk, .dv = results.dv};
    gradients.accumulate = accumulate;
    if (options.score.sinks) {
      results.dsinks = Tensor(DType::f32, {heads});
      gradients.dsinks = results.dsinks;
    }
    if (options.score.bias) {
      const ConstTensorView& bias = options.score.bias;
      results.dbias = Tensor(DType::f32, {bias.dim(0), bias.dim(1), bias.dim(2), bias.dim(3)});
      gradients.dbias = results.dbias;
    }
    for (Tensor* tensor :
         {&results.dq, &results.dk, &results.dv, &results.dsinks, &results.dbias}) {
      if (accumulate && tensor->view()) {
        tensor->random(seed * 6 + 7);
      }
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
    executor.backward(gradients, {q, k, v}, saved, call);
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

  void compare(const Tensor& ours, const Tensor& reference, double bound, const char* name) const {
    EXPECT_LE(distance(ours, reference), tolerance * bound) << name;
  }
};

}  // namespace flashloom::attention_test
