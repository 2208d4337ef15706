#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "flashloom/core/tensor_view.h"

namespace flashloom::cli {

/// A contiguous view without memory yet.
TensorView contiguous_view(DType dtype, const std::vector<int64_t>& shape);

/// A contiguous tensor with memory of its own, at a multiple of 64 bytes.
class AttendTensor {
 public:
  AttendTensor() = default;
  AttendTensor(DType dtype, const std::vector<int64_t>& shape);

  static AttendTensor integers(const std::vector<int64_t>& shape,
                               const std::vector<int32_t>& values);

  /// Normal with this deviation.
  AttendTensor& random(uint64_t seed, double deviation = 1);

  const TensorView& view() const { return view_; }

  operator TensorView() const { return view_; }  // NOLINT(google-explicit-constructor)

  operator ConstTensorView() const { return view_; }  // NOLINT(google-explicit-constructor)

 private:
  std::unique_ptr<std::byte[]> memory_;
  TensorView view_;
};

}  // namespace flashloom::cli
