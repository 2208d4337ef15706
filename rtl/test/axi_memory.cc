#include "rtl/test/axi_memory.h"

#include <algorithm>
#include <stdexcept>

namespace flashloom::rtl {
namespace {

constexpr uint64_t kBurstBorder = 4096;  // AXI: no burst crosses it

}  // namespace

AxiPort::AxiPort(const AxiTiming& timing, std::span<std::byte> bytes, int beat_bytes,
                 int read_beats)
    : timing_(timing),
      bytes_(bytes),
      beat_bytes_(beat_bytes),
      read_beats_(read_beats),
      random_(timing.seed) {}

// A valid that was not taken stays (AXI), a stall only delays the first cycle that offers it.
const AxiPort::Driven& AxiPort::drive(int64_t cycle) {
  driven_.ar_ready = !stalls();
  driven_.aw_ready = !stalls();
  driven_.w_ready = !write_addresses_.empty() && !stalls();
  const bool has_read = !reads_.empty() && cycle >= reads_.front().ready;
  driven_.r_valid = has_read && (driven_.r_valid || !stalls());
  driven_.r_address =
      has_read ? reads_.front().address + static_cast<uint64_t>(beat_ * beat_bytes_) : 0;
  const bool has_answer = !answers_.empty() && cycle >= answers_.front();
  driven_.b_valid = has_answer && (driven_.b_valid || !stalls());
  return driven_;
}

void AxiPort::clock(int64_t cycle, const Seen& seen) {
  if (driven_.r_valid && seen.r_ready) {
    driven_.r_valid = false;
    if (++beat_ == read_beats_) {
      beat_ = 0;
      reads_.pop_front();
    }
  }
  if (seen.ar_valid && driven_.ar_ready) {
    check(seen.ar_address, read_beats_ * beat_bytes_);
    reads_.push_back({seen.ar_address, cycle + timing_.latency});
  }
  if (seen.w_valid && driven_.w_ready) {
    const uint64_t address = write_addresses_.front() + written_;
    check(address, beat_bytes_);
    std::ranges::copy(seen.w_data, bytes_.begin() + static_cast<ptrdiff_t>(address));
    written_ += static_cast<uint64_t>(beat_bytes_);
    if (seen.w_last) {
      written_ = 0;
      write_addresses_.pop_front();
      answers_.push_back(cycle + timing_.latency);
    }
  }
  if (seen.aw_valid && driven_.aw_ready) {
    write_addresses_.push_back(seen.aw_address);
  }
  if (driven_.b_valid && seen.b_ready) {
    driven_.b_valid = false;
    answers_.pop_front();
  }
}

void AxiPort::check(uint64_t address, int bytes) const {
  const uint64_t last = address + static_cast<uint64_t>(bytes) - 1;
  if (last >= bytes_.size() || address / kBurstBorder != last / kBurstBorder) {
    throw std::runtime_error("AXI burst outside memory or over a 4 KiB border at " +
                             std::to_string(address));
  }
}

}  // namespace flashloom::rtl
