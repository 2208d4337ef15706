#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <random>
#include <span>
#include <vector>

namespace flashloom::rtl {

/// How memory behaves: every answer takes `latency` cycles, and each handshake of a port is held up
/// with `stall_chance` a cycle.
struct AxiTiming {
  int latency = 10;
  double stall_chance = 0;
  uint64_t seed = 1;
};

/// One port's AXI slave over shared bytes. A cycle is: drive(), the model's combinational outputs,
/// then clock() with the handshakes that took place.
class AxiPort {
 public:
  AxiPort(const AxiTiming& timing, std::span<std::byte> bytes, int beat_bytes, int read_beats);

  /// What the slave drives in a cycle.
  struct Driven {
    bool ar_ready;
    bool r_valid;
    uint64_t r_address;  // of the beat
    bool aw_ready;
    bool w_ready;
    bool b_valid;
  };

  const Driven& drive(int64_t cycle);

  /// What the engine drives in the same cycle.
  struct Seen {
    bool ar_valid = false;
    uint64_t ar_address = 0;
    bool r_ready = false;
    bool aw_valid = false;
    uint64_t aw_address = 0;
    bool w_valid = false;
    bool w_last = false;
    std::vector<std::byte> w_data;  // empty unless valid
    bool b_ready = false;
  };

  /// Throws std::runtime_error on a burst outside memory or over a 4 KiB border.
  void clock(int64_t cycle, const Seen& seen);

  std::span<const std::byte> beat(uint64_t address) const {
    return bytes_.subspan(address, static_cast<size_t>(beat_bytes_));
  }

 private:
  struct Read {
    uint64_t address;
    int64_t ready;  // cycle of its first beat
  };

  bool stalls() { return timing_.stall_chance > 0 && chance_(random_) < timing_.stall_chance; }

  void check(uint64_t address, int bytes) const;

  AxiTiming timing_;
  std::span<std::byte> bytes_;
  int beat_bytes_;
  int read_beats_;
  std::mt19937_64 random_;
  std::uniform_real_distribution<double> chance_{0, 1};
  std::deque<Read> reads_;
  int beat_ = 0;  // of the first read
  std::deque<uint64_t> write_addresses_;
  uint64_t written_ = 0;  // bytes of the first write
  std::deque<int64_t> answers_;
  Driven driven_{};
};

}  // namespace flashloom::rtl
