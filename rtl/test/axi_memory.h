#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <random>
#include <span>
#include <vector>

#include "flashloom/systolic/memory/memory_timing.h"

namespace flashloom::rtl {

/// How memory behaves: every answer takes `latency` cycles, and each handshake of a port is held up
/// with `stall_chance` a cycle. What touches `error_address` is answered with an error.
struct AxiTiming {
  int latency = 10;
  double stall_chance = 0;
  uint64_t seed = 1;
  int64_t error_address = -1;
  /// If given, says when rows arrive instead of `latency`: the simulator's memory, shared by all
  /// ports and asked in the order of AXI's addresses.
  systolic::MemoryTiming* model = nullptr;
};

/// What is fixed of a port: its number, and bytes of a beat, of a row read and of a row written.
struct AxiShape {
  int port = 0;
  int beat_bytes = 8;
  int read_bytes = 8;
  int write_bytes = 8;
};

/// One port's AXI slave over shared bytes. A cycle is: drive(), the model's combinational outputs,
/// then clock() with the handshakes that took place.
class AxiPort {
 public:
  AxiPort(const AxiTiming& timing, const AxiShape& shape, std::span<std::byte> bytes);

  /// What the slave drives in a cycle.
  struct Driven {
    bool ar_ready;
    bool r_valid;
    uint64_t r_address;  // of the beat
    bool r_error;
    bool aw_ready;
    bool w_ready;
    bool b_valid;
    bool b_error;
  };

  const Driven& drive(int64_t cycle);

  /// What the engine drives in the same cycle.
  struct Seen {
    bool ar_valid = false;
    uint64_t ar_address = 0;
    int ar_beats = 0;  // 0: a whole row
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

  /// Cycles in which the engine did not take what it was offered, or had not sent what the model of
  /// memory had already answered.
  int64_t held() const { return held_; }

  std::span<const std::byte> beat(uint64_t address) const {
    return bytes_.subspan(address, static_cast<size_t>(shape_.beat_bytes));
  }

 private:
  struct Read {
    uint64_t address;
    int beats;
    int64_t ready;  // cycle of its first beat
    bool error;
  };

  struct Write {
    uint64_t address;
    int64_t ready;  // cycle of its answer, if its data have come before
  };

  struct Answer {
    int64_t ready;
    bool error;
  };

  bool stalls() { return timing_.stall_chance > 0 && chance_(random_) < timing_.stall_chance; }

  /// When the simulator's memory has moved a row whose address comes in this cycle.
  int64_t modelled(int64_t cycle, bool is_write, uint64_t address) const;

  void check(uint64_t address, int bytes) const;

  AxiTiming timing_;
  AxiShape shape_;
  std::span<std::byte> bytes_;
  std::mt19937_64 random_;
  std::uniform_real_distribution<double> chance_{0, 1};
  std::deque<Read> reads_;
  int beat_ = 0;  // of the first read
  std::deque<Write> writes_;
  uint64_t written_ = 0;  // bytes of the first write
  std::deque<Answer> answers_;
  Driven driven_{};
  int64_t held_ = 0;
};

}  // namespace flashloom::rtl
