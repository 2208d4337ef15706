#include "flashloom/core/check.h"

#include <fmt/format.h>

#include <span>
#include <string>

namespace flashloom {
namespace {

void check_sizes(std::string_view op, std::string_view argument, const ConstTensorView& view,
                 std::span<const int64_t> expected) {
  bool same = view.rank == static_cast<int>(expected.size());
  int i = 0;
  for (const int64_t size : expected) {
    same = same && (size == kAnySize || view.shape[i] == size);
    ++i;
  }
  if (same) {
    return;
  }
  std::string words = "shape (";
  i = 0;
  for (const int64_t size : expected) {
    words += i++ > 0 ? ", " : "";
    words += size == kAnySize ? "any" : fmt::format("{}", size);
  }
  throw InvalidArgument(op, argument, words + ")", describe(view));
}

}  // namespace

void check_shape(std::string_view op, std::string_view argument, const ConstTensorView& view,
                 std::initializer_list<int64_t> expected) {
  check_sizes(op, argument, view, {expected.begin(), expected.size()});
}

void check_dtype(std::string_view op, std::string_view argument, const ConstTensorView& view,
                 std::initializer_list<DType> allowed) {
  std::string words;
  for (const DType dtype : allowed) {
    if (view.dtype == dtype) {
      return;
    }
    words += words.empty() ? "" : " or ";
    words += dtype_name(dtype);
  }
  throw InvalidArgument(op, argument, words, dtype_name(view.dtype));
}

void check_last_contiguous(std::string_view op, std::string_view argument,
                           const ConstTensorView& view) {
  if (view.rank > 0 && view.dim(-1) > 1 && view.stride(-1) != 1) {
    throw InvalidArgument(op, argument, "stride 1 in the last dimension",
                          fmt::format("{}", view.stride(-1)));
  }
}

void check_contiguous(std::string_view op, std::string_view argument, const ConstTensorView& view) {
  if (!view.is_contiguous()) {
    throw InvalidArgument(op, argument, "a contiguous tensor", describe(view) + " with gaps");
  }
}

void check_cpu(std::string_view op, std::string_view argument, const ConstTensorView& view) {
  if (view && !view.device.is_cpu()) {
    throw InvalidArgument(op, argument, "memory of the CPU", "memory of a GPU");
  }
}

void check_tensor(std::string_view op, std::string_view argument, const ConstTensorView& view,
                  std::initializer_list<int64_t> shape, std::initializer_list<DType> dtypes) {
  check_shape(op, argument, view, shape);
  check_dtype(op, argument, view, dtypes);
  check_last_contiguous(op, argument, view);
  check_cpu(op, argument, view);
}

void check_like(std::string_view op, std::string_view argument, const ConstTensorView& view,
                const ConstTensorView& like) {
  check_sizes(op, argument, view, {like.shape.data(), static_cast<size_t>(like.rank)});
  check_dtype(op, argument, view, {like.dtype});
  check_last_contiguous(op, argument, view);
  check_cpu(op, argument, view);
}

void check(bool ok, std::string_view op, std::string_view argument, std::string_view expected,
           std::string_view actual) {
  if (!ok) {
    throw InvalidArgument(op, argument, expected, actual);
  }
}

}  // namespace flashloom
