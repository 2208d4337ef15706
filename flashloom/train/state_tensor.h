#pragma once

#include <cstdint>
#include <string>

#include "flashloom/core/function_ref.h"
#include "flashloom/core/tensor_view.h"

namespace flashloom {

/// A tensor that a run needs to go on: a trained parameter, or the optimizer's state. The view is
/// of the run's own memory, to be written from and read into.
struct StateTensor {
  std::string name;
  TensorView value;   // all of it, or this rank's part, flat
  int64_t size = -1;  // elements of all of it, if value is a part of some rank's
  int64_t first = 0;  // where the part begins

  bool is_part() const { return size >= 0; }
};

/// Where the parts that other ranks hold come from and go to, as the rank that writes and reads
/// checkpoints sees it. The others take part by calls of their own (train/parallel).
class StateParts {
 public:
  virtual ~StateParts() = default;

  /// Gives every rank's part of `tensor`, in pieces, each with the place of its first element.
  virtual void collect(const StateTensor& tensor,
                       FunctionRef<void(int64_t first, const ConstTensorView& piece)> take) = 0;

  /// Fills `tensor` on every rank from what a file holds of it.
  virtual void hand_out(const StateTensor& tensor, const ConstTensorView& stored) = 0;
};

}  // namespace flashloom
