#include "cli/attend_tensor.h"

#include <algorithm>

#include "flashloom/core/element.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/philox.h"

namespace flashloom::cli {

constexpr int64_t kAlignment = 64;

TensorView contiguous_view(DType dtype, const std::vector<int64_t>& shape) {
  TensorView view;
  view.dtype = dtype;
  view.rank = static_cast<int>(shape.size());
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    view.shape[i] = shape[i];
    view.strides[i] = stride;
    stride *= shape[i];
  }
  return view;
}

AttendTensor::AttendTensor(DType dtype, const std::vector<int64_t>& shape)
    : view_(contiguous_view(dtype, shape)) {
  const auto bytes = static_cast<size_t>(view_.bytes());
  size_t space = bytes + kAlignment;
  memory_ = std::make_unique<std::byte[]>(space);
  void* data = memory_.get();
  view_.data = std::align(kAlignment, bytes, data, space);
}

AttendTensor AttendTensor::integers(const std::vector<int64_t>& shape,
                                    const std::vector<int32_t>& values) {
  AttendTensor tensor(DType::i32, shape);
  std::copy(values.begin(), values.end(), tensor.view_.as<int32_t>());
  return tensor;
}

AttendTensor& AttendTensor::random(uint64_t seed, double deviation) {
  constexpr int64_t kPiece = 1 << 14;
  const ConstTensorView flat = view_;
  const int64_t size = flat.size();
  parallel_for(tile_count(size, kPiece), [&](int64_t piece) {
    const int64_t first = piece * kPiece;
    // Two draws a number.
    RandomSequence numbers(seed, RandomStream::test, static_cast<uint64_t>(2 * first));
    const TensorView row = view_.reshape({size});
    for (int64_t i = first; i < std::min(first + kPiece, size); ++i) {
      store_element(row, {i}, deviation * numbers.normal());
    }
  });
  return *this;
}

}  // namespace flashloom::cli
