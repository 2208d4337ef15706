#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <new>
#include <span>
#include <string>
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
    std::memset(view_.data, 0x7f, static_cast<size_t>(view_.bytes()));
    if (is_float()) {
      fill(std::numeric_limits<double>::quiet_NaN());
    }
  }

  /// i32 from values.
  static Tensor index(std::initializer_list<int64_t> shape, const std::vector<int32_t>& values) {
    Tensor tensor(DType::i32, shape);
    std::memcpy(tensor.view_.data, values.data(), values.size() * 4);
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

 private:
  bool is_float() const {
    return view_.dtype == DType::f32 || view_.dtype == DType::f64 || view_.dtype == DType::bf16 ||
           view_.dtype == DType::f16;
  }

  std::vector<std::byte> bytes_;
  TensorView view_;
};

/// Largest |a - b|; infinite values must agree, NaN anywhere gives NaN.
inline double distance(const Tensor& a, const Tensor& b) {
  double largest = 0;
  for (int64_t i = 0; i < a.size(); ++i) {
    const double x = a.get(i);
    const double y = b.get(i);
    if (x == y) {
      continue;
    }
    const double difference = std::fabs(x - y);
    largest = difference > largest || std::isnan(difference) ? difference : largest;
  }
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

}  // namespace flashloom::attention_test
