#pragma once

#include <cstdint>
#include <vector>

#include "flashloom/core/philox.h"
#include "flashloom/core/tensor_view.h"

namespace flashloom {

/// A matrix of uniform numbers in [-1, 1) for tests, whose rows stand `gap` elements further apart
/// than they are wide.
template <class T = float>
struct TestMatrix {
  TestMatrix(int64_t rows, int64_t columns, uint64_t seed, int64_t gap = 0)
      : memory(static_cast<size_t>(rows * (columns + gap) + 1)),
        view(memory.data(), {rows, columns}) {
    view.strides[0] = columns + gap;
    RandomSequence random(seed, RandomStream::test);
    for (T& x : memory) {
      x = static_cast<T>(random.uniform(-1, 1));
    }
  }

  TestMatrix(const TestMatrix& other) : memory(other.memory), view(other.view) {
    view.data = memory.data();
  }

  TestMatrix& operator=(const TestMatrix&) = delete;

  std::vector<T> memory;
  TensorView view;
};

}  // namespace flashloom
