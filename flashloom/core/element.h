#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>

#include "flashloom/core/tensor_view.h"

namespace flashloom {

/// One element of a CPU tensor of any floating-point dtype (f32, f64, bf16, f16) or i32, as
/// float64, at an index checked against the shape. For float64 reference loops and tests: slow and
/// safe.
double load_element(const ConstTensorView& view, std::span<const int64_t> index);
double load_element(const ConstTensorView& view, std::initializer_list<int64_t> index);

/// Writes one element, rounded to nearest even (i32: truncated). float64 goes to bf16 and f16 by
/// way of f32.
void store_element(const TensorView& view, std::span<const int64_t> index, double value);
void store_element(const TensorView& view, std::initializer_list<int64_t> index, double value);

}  // namespace flashloom
