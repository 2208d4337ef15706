#include "flashloom/train/parallel/state_exchange.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "flashloom/core/function_ref.h"

namespace flashloom {
namespace {

// A part travels in pieces, so that rank 0 needs no memory for a whole tensor.
constexpr int64_t kPieceBytes = int64_t{4} << 20;

TensorView flat(const TensorView& view) {
  return view.reshape({view.size()});
}

// visit(first, count) for the pieces of `elements` elements.
void for_each_piece(int64_t elements, DType dtype,
                    FunctionRef<void(int64_t first, int64_t count)> visit) {
  const int64_t most = kPieceBytes / static_cast<int64_t>(dtype_bytes(dtype));
  for (int64_t first = 0; first < elements; first += most) {
    visit(first, std::min(most, elements - first));
  }
}

using Place = std::array<int64_t, 2>;  // first element of a part, and how many

TensorView view_of(Place& place) {
  return TensorView(place.data(), {2});
}

}  // namespace

void StateExchange::collect(const StateTensor& tensor,
                            FunctionRef<void(int64_t first, const ConstTensorView& piece)> take) {
  take(tensor.first, tensor.value);
  const DType dtype = tensor.value.dtype;
  for (int rank = 1; rank < communicator_.size(); ++rank) {
    Place place = {};
    communicator_.receive(view_of(place), rank);
    for_each_piece(place[1], dtype, [&](int64_t first, int64_t count) {
      buffer_.resize(kPieceBytes);
      const TensorView piece(buffer_.data(), dtype, {count});
      communicator_.receive(piece, rank);
      take(place[0] + first, piece);
    });
  }
}

void StateExchange::send_all(std::span<const StateTensor> tensors) {
  for (const StateTensor& tensor : tensors) {
    if (tensor.is_part()) {
      Place place = {tensor.first, tensor.value.size()};
      communicator_.send(view_of(place), 0);
      const TensorView values = flat(tensor.value);
      for_each_piece(place[1], values.dtype, [&](int64_t first, int64_t count) {
        communicator_.send(values.slice(0, first, count), 0);
      });
    }
  }
}

void StateExchange::hand_out(const StateTensor& tensor, const ConstTensorView& stored) {
  more(true);
  const auto width = static_cast<int64_t>(dtype_bytes(tensor.value.dtype));
  const auto* all = static_cast<const std::byte*>(stored.data);
  const auto copy_own = [&](int64_t first) {
    std::memcpy(tensor.value.data, all + first * width,
                static_cast<size_t>(tensor.value.size() * width));
  };
  if (!tensor.is_part()) {
    copy_own(0);
    const TensorView values = flat(tensor.value);
    for_each_piece(values.size(), values.dtype, [&](int64_t first, int64_t count) {
      communicator_.broadcast(values.slice(0, first, count), 0);
    });
    return;
  }
  copy_own(tensor.first);
  for (int rank = 1; rank < communicator_.size(); ++rank) {
    Place place = {};
    communicator_.receive(view_of(place), rank);
    for_each_piece(place[1], tensor.value.dtype, [&](int64_t first, int64_t count) {
      communicator_.send(
          ConstTensorView(all + (place[0] + first) * width, tensor.value.dtype, {count}), rank);
    });
  }
}

void StateExchange::end() {
  more(false);
}

bool StateExchange::receive_all(std::span<const StateTensor> tensors) {
  size_t next = 0;
  while (more(false)) {
    const StateTensor& tensor = tensors[next++];
    const TensorView values = flat(tensor.value);
    if (tensor.is_part()) {
      Place place = {tensor.first, values.size()};
      communicator_.send(view_of(place), 0);
    }
    for_each_piece(values.size(), values.dtype, [&](int64_t first, int64_t count) {
      const TensorView piece = values.slice(0, first, count);
      if (tensor.is_part()) {
        communicator_.receive(piece, 0);
      } else {
        communicator_.broadcast(piece, 0);
      }
    });
  }
  return next > 0;
}

bool StateExchange::more(bool value) {
  int64_t flag = value ? 1 : 0;
  communicator_.broadcast(TensorView(&flag, {1}), 0);
  return flag != 0;
}

}  // namespace flashloom
