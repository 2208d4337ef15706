#pragma once

// Ports of verilated models, of any width, as runs of bits.

#include <verilated.h>

#include <cstddef>
#include <cstdint>

namespace flashloom::rtl {

template <size_t kWords>
uint64_t get_bits(const VlWide<kWords>& port, size_t first, size_t count) {
  uint64_t bits = 0;
  for (size_t taken = 0; taken < count;) {
    const size_t at = first + taken;
    bits |= uint64_t{port[at / 32] >> (at % 32)} << taken;
    taken += 32 - at % 32;
  }
  return count == 64 ? bits : bits & ((uint64_t{1} << count) - 1);
}

template <size_t kWords>
void set_bits(VlWide<kWords>& port, size_t first, size_t count, uint64_t bits) {
  for (size_t done = 0; done < count;) {
    const size_t at = first + done;
    const size_t here = 32 - at % 32 < count - done ? 32 - at % 32 : count - done;
    const uint32_t mask = static_cast<uint32_t>((uint64_t{1} << here) - 1) << (at % 32);
    port[at / 32] =
        (port[at / 32] & ~mask) | (static_cast<uint32_t>((bits >> done) << (at % 32)) & mask);
    done += here;
  }
}

// Ports of up to 64 bits are plain integers.
template <typename Integer>
uint64_t get_bits(const Integer& port, size_t first, size_t count) {
  const uint64_t bits = uint64_t{port} >> first;
  return count == 64 ? bits : bits & ((uint64_t{1} << count) - 1);
}

template <typename Integer>
void set_bits(Integer& port, size_t first, size_t count, uint64_t bits) {
  const uint64_t mask = (count == 64 ? ~uint64_t{0} : (uint64_t{1} << count) - 1) << first;
  port = static_cast<Integer>((uint64_t{port} & ~mask) | ((bits << first) & mask));
}

}  // namespace flashloom::rtl
