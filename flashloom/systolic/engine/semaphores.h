#pragma once

#include <array>
#include <cstdint>

namespace flashloom::systolic {

inline constexpr int kSemaphoreCount = 32;

/// A semaphore can be taken when it is free and holds the expected value; who releases it writes a
/// value. Two values, 0 empty and 1 full, order a buffer's producer and consumer.
struct Semaphore {
  int64_t value = 0;
  bool busy = false;
  int holder = -1;  // instruction that took it, for messages
  int64_t since = 0;

  bool available(int64_t expected) const { return !busy && value == expected; }
};

using Semaphores = std::array<Semaphore, kSemaphoreCount>;

}  // namespace flashloom::systolic
