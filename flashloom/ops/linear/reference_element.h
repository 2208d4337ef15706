#pragma once

#include "flashloom/core/tensor_view.h"

namespace flashloom {

/// Elements of f32 and f64 tensors as double, for reference implementations: with f64 tensors their
/// gradients can be checked by finite differences.
inline double load_element(const ConstTensorView& view, int64_t i, int64_t j) {
  const int64_t at = i * view.strides[0] + j * view.strides[1];
  return view.dtype == DType::f64 ? view.as<double>()[at]
                                  : static_cast<double>(view.as<float>()[at]);
}

inline double load_element(const ConstTensorView& view, int64_t i) {
  const int64_t at = i * view.strides[0];
  return view.dtype == DType::f64 ? view.as<double>()[at]
                                  : static_cast<double>(view.as<float>()[at]);
}

inline void store_element(const TensorView& view, int64_t i, int64_t j, double value) {
  const int64_t at = i * view.strides[0] + j * view.strides[1];
  if (view.dtype == DType::f64) {
    view.as<double>()[at] = value;
  } else {
    view.as<float>()[at] = static_cast<float>(value);
  }
}

inline void store_element(const TensorView& view, int64_t i, double value) {
  const int64_t at = i * view.strides[0];
  if (view.dtype == DType::f64) {
    view.as<double>()[at] = value;
  } else {
    view.as<float>()[at] = static_cast<float>(value);
  }
}

}  // namespace flashloom
