#pragma once

#include "flashloom/core/error.h"

namespace flashloom {

/// A gradient with a NaN or an infinity: the step cannot be taken. what() is "the gradient of …".
class NonFiniteGradient : public Error {
 public:
  using Error::Error;
};

}  // namespace flashloom
