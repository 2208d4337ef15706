#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <numbers>

namespace flashloom {

/// Philox4x32-10 (Salmon et al. 2011): 128 random bits as a pure function of a 64-bit key and a
/// 128-bit counter. Every random number in Flashloom is one of these, so a run's state is its seed
/// and a few counters. Constant-evaluable and callable from device code.
constexpr std::array<uint32_t, 4> philox(uint64_t key, uint64_t counter_low,
                                         uint64_t counter_high) {
  uint32_t k0 = static_cast<uint32_t>(key);
  uint32_t k1 = static_cast<uint32_t>(key >> 32);
  uint32_t c0 = static_cast<uint32_t>(counter_low);
  uint32_t c1 = static_cast<uint32_t>(counter_low >> 32);
  uint32_t c2 = static_cast<uint32_t>(counter_high);
  uint32_t c3 = static_cast<uint32_t>(counter_high >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0;
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {c0, c1, c2, c3};
}

/// The purposes for which random numbers are drawn; the upper half of the counter, so that no two
/// purposes ever share a number.
enum class RandomStream : uint64_t {
  adapter_init = 1,
  data_order = 2,
  sampling = 3,
  dropout = 4,
  stochastic_rounding = 5,
  test = 6,
  probe = 7,
  data_choice = 8,
  embedding_noise = 9,
};

/// Uniform in [0, 1), 24 bits.
constexpr float uniform_from_bits(uint32_t bits) {
  return static_cast<float>(bits >> 8) * 0x1p-24f;
}

/// A sequence of numbers from (seed, stream): state is one counter, so it can be saved.
class RandomSequence {
 public:
  RandomSequence(uint64_t seed, RandomStream stream, uint64_t first = 0)
      : seed_(seed), stream_(static_cast<uint64_t>(stream)), position_(first) {}

  uint32_t bits() {
    const uint64_t block = position_ / 4;
    const uint64_t lane = position_ % 4;
    if (!loaded_ || block != block_) {
      values_ = philox(seed_, block, stream_);
      block_ = block;
      loaded_ = true;
    }
    ++position_;
    return values_[lane];
  }

  /// Uniform in [0, 1).
  float uniform() { return uniform_from_bits(bits()); }

  float uniform(float low, float high) { return low + (high - low) * uniform(); }

  /// Standard normal (Box-Muller; two draws a number, so that the state stays one counter).
  float normal() {
    const double u = (static_cast<double>(bits()) + 1.0) * 0x1p-32;
    const double v = static_cast<double>(bits()) * 0x1p-32;
    return static_cast<float>(std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v));
  }

  /// Uniform in [0, bound), without bias (Lemire's method); bound > 0.
  uint32_t below(uint32_t bound) {
    for (;;) {
      const uint64_t product = uint64_t{bits()} * bound;
      if (static_cast<uint32_t>(product) >= (0u - bound) % bound) {
        return static_cast<uint32_t>(product >> 32);
      }
    }
  }

  uint64_t position() const { return position_; }

 private:
  uint64_t seed_;
  uint64_t stream_;
  uint64_t position_;
  uint64_t block_ = 0;
  bool loaded_ = false;
  std::array<uint32_t, 4> values_ = {};
};

}  // namespace flashloom
