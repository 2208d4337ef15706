#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <initializer_list>
#include <span>
#include <vector>

#include "flashloom/core/element.h"
#include "flashloom/core/philox.h"
#include "flashloom/core/tensor_view.h"

namespace flashloom {

/// Calls visit(index) for every index of a shape, the last dimension fastest.
template <class Visit>
void for_each_index(const ConstTensorView& view, Visit visit) {
  std::array<int64_t, kMaxRank> index = {};
  const auto rank = static_cast<size_t>(view.rank);
  for (int64_t i = 0; i < view.size(); ++i) {
    visit(std::span<const int64_t>(index.data(), rank));
    for (size_t d = rank; d-- > 0;) {
      if (++index[d] < view.shape[d]) {
        break;
      }
      index[d] = 0;
    }
  }
}

/// A tensor with memory of its own, for tests and benchmarks. `padding` elements lie behind each
/// row (the last dimension), so that a kernel that ignores strides is found out.
class OwnedTensor {
 public:
  OwnedTensor() = default;

  OwnedTensor(DType dtype, std::initializer_list<int64_t> shape, int64_t padding = 0) {
    std::array<int64_t, kMaxRank> dims = {};
    std::copy(shape.begin(), shape.end(), dims.begin());
    view_ = TensorView(static_cast<void*>(nullptr), dtype, shape);
    if (padding > 0) {
      int64_t stride = dims[shape.size() - 1] + padding;
      for (int d = view_.rank - 2; d >= 0; --d) {
        view_.strides[d] = stride;
        stride *= view_.shape[d];
      }
      count_ = stride;
    } else {
      count_ = view_.size();
    }
    memory_.resize(static_cast<size_t>(count_) * dtype_bytes(dtype), std::byte{0});
    view_.data = memory_.data();
  }

  OwnedTensor(const OwnedTensor& other)
      : memory_(other.memory_), view_(other.view_), count_(other.count_) {
    view_.data = memory_.data();
  }

  OwnedTensor& operator=(const OwnedTensor& other) {
    if (this != &other) {
      memory_ = other.memory_;
      view_ = other.view_;
      count_ = other.count_;
      view_.data = memory_.data();
    }
    return *this;
  }

  OwnedTensor(OwnedTensor&&) = default;
  OwnedTensor& operator=(OwnedTensor&&) = default;
  ~OwnedTensor() = default;

  const TensorView& view() const { return view_; }

  operator TensorView() const { return view_; }  // NOLINT(google-explicit-constructor)

  operator ConstTensorView() const { return view_; }  // NOLINT(google-explicit-constructor)

  /// All bytes, padding included.
  const std::vector<std::byte>& memory() const { return memory_; }

  double at(std::initializer_list<int64_t> index) const { return load_element(view_, index); }

  void set(std::initializer_list<int64_t> index, double value) {
    store_element(view_, index, value);
  }

  /// Standard normals times `scale` plus `offset`.
  OwnedTensor& fill_normal(uint64_t seed, double scale = 1, double offset = 0) {
    RandomSequence random(seed, RandomStream::test);
    for_each_index(view_, [&](std::span<const int64_t> index) {
      store_element(view_, index, random.normal() * scale + offset);
    });
    return *this;
  }

  OwnedTensor& fill(double value) {
    for_each_index(view_, [&](auto index) { store_element(view_, index, value); });
    return *this;
  }

 private:
  std::vector<std::byte> memory_;
  TensorView view_;
  int64_t count_ = 0;
};

inline OwnedTensor normal_tensor(DType dtype, std::initializer_list<int64_t> shape, uint64_t seed,
                                 double scale = 1, double offset = 0, int64_t padding = 0) {
  OwnedTensor tensor(dtype, shape, padding);
  tensor.fill_normal(seed, scale, offset);
  return tensor;
}

/// A dense copy in another dtype.
inline OwnedTensor to_dtype(const ConstTensorView& source, DType dtype) {
  OwnedTensor copy;
  switch (source.rank) {
    case 1:
      copy = OwnedTensor(dtype, {source.shape[0]});
      break;
    case 2:
      copy = OwnedTensor(dtype, {source.shape[0], source.shape[1]});
      break;
    case 3:
      copy = OwnedTensor(dtype, {source.shape[0], source.shape[1], source.shape[2]});
      break;
    default:
      copy =
          OwnedTensor(dtype, {source.shape[0], source.shape[1], source.shape[2], source.shape[3]});
  }
  for_each_index(
      source, [&](auto index) { store_element(copy.view(), index, load_element(source, index)); });
  return copy;
}

/// Largest |a - b| / (1 + |b|); infinity where one is NaN and the other is not.
inline double max_error(const ConstTensorView& actual, const ConstTensorView& expected) {
  double worst = 0;
  for_each_index(expected, [&](auto index) {
    const double a = load_element(actual, index);
    const double b = load_element(expected, index);
    if (std::isnan(a) != std::isnan(b)) {
      worst = INFINITY;
    } else if (!std::isnan(a) && a != b) {
      worst = std::max(worst, std::fabs(a - b) / (1 + std::fabs(b)));
    }
  });
  return worst;
}

inline bool same_bits(const OwnedTensor& a, const OwnedTensor& b) {
  return a.memory() == b.memory();
}

/// Sum of a o b, for the scalar whose gradient a finite-difference test checks.
inline double dot(const ConstTensorView& a, const ConstTensorView& b) {
  double sum = 0;
  for_each_index(a, [&](auto index) { sum += load_element(a, index) * load_element(b, index); });
  return sum;
}

/// d value() / d x[index] by central differences; x is f64. `step` 1e-5 leaves an error near 1e-10
/// for values and third derivatives of order 1.
template <class Value>
double finite_difference(const TensorView& x, std::span<const int64_t> index, Value value,
                         double step = 1e-5) {
  const double saved = load_element(x, index);
  store_element(x, index, saved + step);
  const double above = value();
  store_element(x, index, saved - step);
  const double below = value();
  store_element(x, index, saved);
  return (above - below) / (2 * step);
}

}  // namespace flashloom
