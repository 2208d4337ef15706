#pragma once

#include <initializer_list>
#include <string_view>

#include "flashloom/core/error.h"
#include "flashloom/core/tensor_view.h"

namespace flashloom {

/// Argument checks shared by all ops. Each throws InvalidArgument naming `op` and `argument`.
/// In a shape, kAnySize accepts every size.
inline constexpr int64_t kAnySize = -1;

void check_shape(std::string_view op, std::string_view argument, const ConstTensorView& view,
                 std::initializer_list<int64_t> expected);
void check_dtype(std::string_view op, std::string_view argument, const ConstTensorView& view,
                 std::initializer_list<DType> allowed);
/// Stride 1 in the last dimension.
void check_last_contiguous(std::string_view op, std::string_view argument,
                           const ConstTensorView& view);
void check_contiguous(std::string_view op, std::string_view argument, const ConstTensorView& view);
void check_cpu(std::string_view op, std::string_view argument, const ConstTensorView& view);
/// What most arguments of an op on the CPU are: of this shape and one of these dtypes, stride 1 in
/// the last dimension, in the CPU's memory.
void check_tensor(std::string_view op, std::string_view argument, const ConstTensorView& view,
                  std::initializer_list<int64_t> shape,
                  std::initializer_list<DType> dtypes = {DType::f32});
/// The same, of another argument's shape and dtype.
void check_like(std::string_view op, std::string_view argument, const ConstTensorView& view,
                const ConstTensorView& like);
/// A condition with its own words.
void check(bool ok, std::string_view op, std::string_view argument, std::string_view expected,
           std::string_view actual);

}  // namespace flashloom
