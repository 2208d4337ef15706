#include "flashloom/core/element.h"

#include <fmt/format.h>

#include "flashloom/core/error.h"

namespace flashloom {
namespace {

int64_t checked_offset(const ConstTensorView& view, std::span<const int64_t> index) {
  if (view.rank != static_cast<int>(index.size())) {
    throw InvalidArgument("element", "rank", fmt::format("{}", index.size()), describe(view));
  }
  int64_t offset = 0;
  for (int i = 0; i < view.rank; ++i) {
    if (index[i] < 0 || index[i] >= view.shape[i]) {
      detail::throw_bad_index("element", index[i], view.shape[i]);
    }
    offset += index[i] * view.strides[i];
  }
  return offset;
}

[[noreturn]] void throw_no_number(DType dtype) {
  throw InvalidArgument("element", "dtype", "f32, f64, bf16, f16 or i32", dtype_name(dtype));
}

}  // namespace

double load_element(const ConstTensorView& view, std::span<const int64_t> index) {
  const int64_t offset = checked_offset(view, index);
  switch (view.dtype) {
    case DType::f32:
      return view.as<float>()[offset];
    case DType::f64:
      return view.as<double>()[offset];
    case DType::bf16:
      return static_cast<float>(view.as<bf16>()[offset]);
    case DType::f16:
      return static_cast<float>(view.as<f16>()[offset]);
    case DType::i32:
      return view.as<int32_t>()[offset];
    default:
      throw_no_number(view.dtype);
  }
}

double load_element(const ConstTensorView& view, std::initializer_list<int64_t> index) {
  return load_element(view, std::span(index.begin(), index.size()));
}

void store_element(const TensorView& view, std::span<const int64_t> index, double value) {
  const int64_t offset = checked_offset(view, index);
  switch (view.dtype) {
    case DType::f32:
      view.as<float>()[offset] = static_cast<float>(value);
      return;
    case DType::f64:
      view.as<double>()[offset] = value;
      return;
    case DType::bf16:
      view.as<bf16>()[offset] = bf16(static_cast<float>(value));
      return;
    case DType::f16:
      view.as<f16>()[offset] = f16(static_cast<float>(value));
      return;
    case DType::i32:
      view.as<int32_t>()[offset] = static_cast<int32_t>(value);
      return;
    default:
      throw_no_number(view.dtype);
  }
}

void store_element(const TensorView& view, std::initializer_list<int64_t> index, double value) {
  store_element(view, std::span(index.begin(), index.size()), value);
}

}  // namespace flashloom
