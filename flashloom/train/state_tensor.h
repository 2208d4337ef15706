#pragma once

#include <string>

#include "flashloom/core/tensor_view.h"

namespace flashloom {

/// A tensor that a run needs to go on: a trained parameter, or the optimizer's state. The view is
/// of the run's own memory, to be written from and read into.
struct StateTensor {
  std::string name;
  TensorView value;
};

}  // namespace flashloom
