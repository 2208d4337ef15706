#include "rtl/test/axi_memory.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace flashloom::rtl {
namespace {

constexpr uint64_t kBurstBorder = 4096;  // AXI: no burst crosses it

}  // namespace

AxiPort::AxiPort(const AxiTiming& timing, const AxiShape& shape, std::span<std::byte> bytes)
    : timing_(timing), shape_(shape), bytes_(bytes), random_(timing.seed) {}

// A valid that was not taken stays (AXI), a stall only delays the first cycle that offers it.
const AxiPort::Driven& AxiPort::drive(int64_t cycle) {
  driven_.ar_ready = !stalls();
  driven_.aw_ready = !stalls();
  driven_.w_ready = !writes_.empty() && !stalls();
  const bool has_read = !reads_.empty() && cycle >= reads_.front().ready;
  driven_.r_valid = has_read && (driven_.r_valid || !stalls());
  driven_.r_address =
      has_read ? reads_.front().address + static_cast<uint64_t>(beat_ * shape_.beat_bytes) : 0;
  driven_.r_error = has_read && reads_.front().error;
  const bool has_answer = !answers_.empty() && cycle >= answers_.front().ready;
  driven_.b_valid = has_answer && (driven_.b_valid || !stalls());
  driven_.b_error = has_answer && answers_.front().error;
  return driven_;
}

void AxiPort::clock(int64_t cycle, const Seen& seen) {
  const auto fails = [&](uint64_t address) {
    return static_cast<int64_t>(address) == timing_.error_address;
  };
  held_ += driven_.r_valid && !seen.r_ready ? 1 : 0;
  if (driven_.r_valid && seen.r_ready) {
    driven_.r_valid = false;
    if (++beat_ == reads_.front().beats) {
      beat_ = 0;
      reads_.pop_front();
    }
  }
  if (seen.ar_valid && driven_.ar_ready) {
    const int beats = seen.ar_beats > 0 ? seen.ar_beats : shape_.read_bytes / shape_.beat_bytes;
    check(seen.ar_address, beats * shape_.beat_bytes);
    const int64_t first = timing_.model != nullptr
                              ? modelled(cycle, false, seen.ar_address) - (beats - 1)
                              : cycle + timing_.latency;
    reads_.push_back({seen.ar_address, beats, first, fails(seen.ar_address)});
  }
  if (seen.w_valid && driven_.w_ready) {
    const Write& write = writes_.front();
    check(write.address + written_, shape_.beat_bytes);
    std::ranges::copy(seen.w_data,
                      bytes_.begin() + static_cast<ptrdiff_t>(write.address + written_));
    written_ += static_cast<uint64_t>(shape_.beat_bytes);
    if (seen.w_last) {
      const int64_t ready =
          timing_.model != nullptr ? std::max(write.ready, cycle + 1) : cycle + timing_.latency;
      held_ += timing_.model != nullptr ? ready - write.ready : 0;
      answers_.push_back({ready, fails(write.address)});
      written_ = 0;
      writes_.pop_front();
    }
  }
  if (seen.aw_valid && driven_.aw_ready) {
    writes_.push_back(
        {seen.aw_address, timing_.model != nullptr ? modelled(cycle, true, seen.aw_address) : 0});
  }
  if (driven_.b_valid && seen.b_ready) {
    driven_.b_valid = false;
    answers_.pop_front();
  }
}

int64_t AxiPort::modelled(int64_t cycle, bool is_write, uint64_t address) const {
  systolic::MemoryRequest request{.port = shape_.port,
                                  .is_write = is_write,
                                  .address = static_cast<int64_t>(address),
                                  .bytes = is_write ? shape_.write_bytes : shape_.read_bytes,
                                  .issued = cycle};
  timing_.model->request(request);
  return request.finished;
}

void AxiPort::check(uint64_t address, int bytes) const {
  const uint64_t last = address + static_cast<uint64_t>(bytes) - 1;
  if (last >= bytes_.size() || address / kBurstBorder != last / kBurstBorder) {
    throw std::runtime_error("AXI burst outside memory or over a 4 KiB border at " +
                             std::to_string(address));
  }
}

}  // namespace flashloom::rtl
