#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>

#include "flashloom/core/device.h"
#include "flashloom/core/dtype.h"

namespace flashloom {

inline constexpr int kMaxRank = 6;

namespace detail {

[[noreturn]] void throw_wrong_dtype(DType expected, DType actual);
[[noreturn]] void throw_bad_index(std::string_view what, int64_t index, int64_t limit);

}  // namespace detail

/// A tensor in somebody else's memory, with DLPack's fields. Strides count elements. A default
/// constructed view is absent (an optional argument that was not given).
template <class Void>
struct BasicTensorView {
  Void* data = nullptr;
  DType dtype = DType::f32;
  Device device = {};
  int rank = 0;
  std::array<int64_t, kMaxRank> shape = {};
  std::array<int64_t, kMaxRank> strides = {};  // in elements

  BasicTensorView() = default;

  /// Contiguous, last dimension fastest.
  BasicTensorView(Void* memory, DType type, std::initializer_list<int64_t> dims, Device where = {})
      : data(memory), dtype(type), device(where) {
    set_shape(dims.begin(), static_cast<int>(dims.size()));
  }

  /// Contiguous view of typed memory.
  template <class T>
    requires(!std::is_void_v<T> && std::is_convertible_v<T*, Void*>)
  BasicTensorView(T* memory, std::initializer_list<int64_t> dims)
      : BasicTensorView(static_cast<Void*>(memory), kDTypeOf<T>, dims) {}

  /// A mutable view is also a constant one.
  template <class Other>
    requires(std::is_const_v<Void> && !std::is_const_v<Other>)
  BasicTensorView(const BasicTensorView<Other>& other)  // NOLINT(google-explicit-constructor)
      : data(other.data),
        dtype(other.dtype),
        device(other.device),
        rank(other.rank),
        shape(other.shape),
        strides(other.strides) {}

  /// True if the argument was given (also with zero elements).
  explicit operator bool() const { return data != nullptr || rank > 0; }

  int64_t size() const {
    int64_t count = 1;
    for (int i = 0; i < rank; ++i) {
      count *= shape[i];
    }
    return count;
  }

  /// Bytes of a dense copy.
  int64_t bytes() const { return size() * static_cast<int64_t>(dtype_bytes(dtype)); }

  /// Size of dimension `dim`; negative counts from the end.
  int64_t dim(int index) const { return shape[index < 0 ? rank + index : index]; }

  int64_t stride(int index) const { return strides[index < 0 ? rank + index : index]; }

  bool is_contiguous() const {
    int64_t expected = 1;
    for (int i = rank - 1; i >= 0; --i) {
      if (shape[i] != 1 && strides[i] != expected) {
        return false;
      }
      expected *= shape[i];
    }
    return true;
  }

  /// The memory as T; throws InvalidArgument if the dtype differs.
  template <class T>
  auto* as() const {
    using Element = std::conditional_t<std::is_const_v<Void>, const T, T>;
    if (dtype != kDTypeOf<T>) {
      detail::throw_wrong_dtype(kDTypeOf<T>, dtype);
    }
    return static_cast<Element*>(data);
  }

  /// The sub-tensor at `index` of dimension `dim`, which disappears.
  BasicTensorView select(int dim, int64_t index) const {
    if (index < 0 || index >= shape[dim]) {
      detail::throw_bad_index("select", index, shape[dim]);
    }
    BasicTensorView view = *this;
    view.data = offset(strides[dim] * index);
    for (int i = dim; i + 1 < rank; ++i) {
      view.shape[i] = shape[i + 1];
      view.strides[i] = strides[i + 1];
    }
    --view.rank;
    return view;
  }

  /// `count` entries of dimension `dim`, from `first` on.
  BasicTensorView slice(int dim, int64_t first, int64_t count) const {
    if (first < 0 || count < 0 || first > shape[dim] - count) {
      detail::throw_bad_index("slice", first + count, shape[dim]);
    }
    BasicTensorView view = *this;
    view.data = offset(strides[dim] * first);
    view.shape[dim] = count;
    return view;
  }

  BasicTensorView transpose(int a, int b) const {
    BasicTensorView view = *this;
    std::swap(view.shape[a], view.shape[b]);
    std::swap(view.strides[a], view.strides[b]);
    return view;
  }

  /// The same elements in another shape; the view must be contiguous and the sizes equal.
  BasicTensorView reshape(std::initializer_list<int64_t> dims) const {
    BasicTensorView view = *this;
    view.set_shape(dims.begin(), static_cast<int>(dims.size()));
    if (!is_contiguous() || view.size() != size()) {
      detail::throw_bad_index("reshape", view.size(), size());
    }
    return view;
  }

  /// Splits dimension `dim` into (outer, inner): (T, H*D) becomes (T, H, D) at any stride.
  BasicTensorView split(int dim, int64_t inner) const {
    if (inner <= 0 || shape[dim] % inner != 0 || rank == kMaxRank) {
      detail::throw_bad_index("split", inner, shape[dim]);
    }
    BasicTensorView view = *this;
    for (int i = rank; i > dim + 1; --i) {
      view.shape[i] = shape[i - 1];
      view.strides[i] = strides[i - 1];
    }
    view.shape[dim] = shape[dim] / inner;
    view.shape[dim + 1] = inner;
    view.strides[dim] = strides[dim] * inner;
    view.strides[dim + 1] = strides[dim];
    ++view.rank;
    return view;
  }

 private:
  void set_shape(const int64_t* dims, int count) {
    if (count > kMaxRank) {
      detail::throw_bad_index("rank", count, kMaxRank);
    }
    rank = count;
    shape = {};
    strides = {};
    int64_t stride = 1;
    for (int i = count - 1; i >= 0; --i) {
      shape[i] = dims[i];
      strides[i] = stride;
      stride *= dims[i];
    }
  }

  Void* offset(int64_t elements) const {
    using Byte = std::conditional_t<std::is_const_v<Void>, const std::byte, std::byte>;
    if (data == nullptr) {
      return nullptr;
    }
    return static_cast<Byte*>(data) + elements * static_cast<int64_t>(dtype_bytes(dtype));
  }
};

using TensorView = BasicTensorView<void>;
using ConstTensorView = BasicTensorView<const void>;

/// "(2, 3, 64) bf16", for messages.
std::string describe(const ConstTensorView& view);

}  // namespace flashloom
