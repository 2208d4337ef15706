#include "flashloom/core/tensor_view.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <span>

#include "flashloom/core/error.h"

namespace flashloom {
namespace detail {

void throw_wrong_dtype(DType expected, DType actual) {
  throw InvalidArgument("TensorView", "dtype", dtype_name(expected), dtype_name(actual));
}

void throw_bad_index(std::string_view what, int64_t index, int64_t limit) {
  throw InvalidArgument("TensorView", what, fmt::format("something that fits {}", limit),
                        fmt::format("{}", index));
}

}  // namespace detail

std::string describe(const ConstTensorView& view) {
  if (!view) {
    return "nothing";
  }
  return fmt::format("({}) {}",
                     fmt::join(std::span(view.shape.data(), static_cast<size_t>(view.rank)), ", "),
                     dtype_name(view.dtype));
}

}  // namespace flashloom
