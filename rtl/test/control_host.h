#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <random>

namespace flashloom::rtl {

/// The host's side of the AXI4-Lite port: one write and one read at a time are offered until they
/// are taken; answers come in order. With a stall chance, address and data of a write come in
/// different cycles and answers wait.
class ControlHost {
 public:
  ControlHost(double stall_chance, uint64_t seed) : stall_chance_(stall_chance), random_(seed) {}

  struct Driven {
    bool aw_valid = false;
    uint32_t aw_address = 0;
    bool w_valid = false;
    uint32_t w_data = 0;
    uint32_t w_strobe = kWholeWord;
    bool b_ready = false;
    bool ar_valid = false;
    uint32_t ar_address = 0;
    bool r_ready = false;
  };

  struct Seen {
    bool aw_ready = false;
    bool w_ready = false;
    bool b_valid = false;
    uint32_t b_resp = 0;
    bool ar_ready = false;
    bool r_valid = false;
    uint32_t r_data = 0;
    uint32_t r_resp = 0;
  };

  struct Answer {
    uint32_t data;
    bool refused;
  };

  static constexpr uint32_t kWholeWord = 0xF;

  /// Not while another is offered.
  void offer_write(uint32_t offset, uint32_t data, uint32_t strobe = kWholeWord);
  void offer_read(uint32_t offset);

  bool offers_write() const { return write_.has_value(); }

  bool offers_read() const { return read_.has_value(); }

  const Driven& drive();
  void clock(const Seen& seen);

  /// The oldest answer that was not yet asked for.
  std::optional<Answer> take_write_answer() { return take(write_answers_); }

  std::optional<Answer> take_read_answer() { return take(read_answers_); }

 private:
  struct Write {
    uint32_t offset;
    uint32_t data;
    uint32_t strobe;
  };

  static std::optional<Answer> take(std::deque<Answer>& answers);

  bool stalls() { return stall_chance_ > 0 && chance_(random_) < stall_chance_; }

  double stall_chance_;
  std::mt19937_64 random_;
  std::uniform_real_distribution<double> chance_{0, 1};
  std::optional<Write> write_;
  std::optional<uint32_t> read_;
  std::deque<Answer> write_answers_;
  std::deque<Answer> read_answers_;
  Driven driven_;
};

}  // namespace flashloom::rtl
