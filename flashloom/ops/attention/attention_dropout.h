#pragma once

#include <array>
#include <cstdint>

#include "flashloom/core/philox.h"

namespace flashloom {

/// The random bits of one query and the four keys at positions 4 `key_block` ... + 3. `head` is the
/// query head, `sequence` the index in the batch, positions as in the contract.
constexpr std::array<uint32_t, 4> attention_dropout_block(uint64_t seed, uint64_t offset,
                                                          uint32_t sequence, uint32_t head,
                                                          uint32_t query_position,
                                                          uint32_t key_block) {
  // The offset moves the key along a Weyl sequence, the purpose stays in the low byte: no two draws
  // of a run share a counter.
  const uint64_t key = seed + offset * 0x9E3779B97F4A7C15u;
  const uint64_t low = uint64_t{query_position} << 32 | key_block;
  const uint64_t high =
      uint64_t{sequence} << 32 | uint64_t{head} << 8 | static_cast<uint64_t>(RandomStream::dropout);
  return philox(key, low, high);
}

/// The 32 random bits of one pair. A kernel that walks keys in order draws a block for every
/// fourth.
constexpr uint32_t attention_dropout_bits(uint64_t seed, uint64_t offset, uint32_t sequence,
                                          uint32_t head, uint32_t query_position,
                                          uint32_t key_position) {
  return attention_dropout_block(seed, offset, sequence, head, query_position,
                                 key_position >> 2)[key_position & 3];
}

/// Bits below the threshold are dropped; the others are scaled by 1 / (1 - probability).
constexpr uint64_t attention_dropout_threshold(float probability) {
  return static_cast<uint64_t>(static_cast<double>(probability) * 0x1p32);
}

}  // namespace flashloom
