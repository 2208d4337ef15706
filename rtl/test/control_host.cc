#include "rtl/test/control_host.h"

#include <stdexcept>

namespace flashloom::rtl {

void ControlHost::offer_write(uint32_t offset, uint32_t data, uint32_t strobe) {
  if (write_) {
    throw std::logic_error("a write is still offered");
  }
  write_ = Write{offset, data, strobe};
}

void ControlHost::offer_read(uint32_t offset) {
  if (read_) {
    throw std::logic_error("a read is still offered");
  }
  read_ = offset;
}

// A valid that was not taken stays.
const ControlHost::Driven& ControlHost::drive() {
  driven_.aw_valid = write_ && (driven_.aw_valid || !stalls());
  driven_.w_valid = write_ && (driven_.w_valid || !stalls());
  if (write_) {
    driven_.aw_address = write_->offset;
    driven_.w_data = write_->data;
    driven_.w_strobe = write_->strobe;
  }
  driven_.ar_valid = read_ && (driven_.ar_valid || !stalls());
  driven_.ar_address = read_.value_or(0);
  driven_.b_ready = !stalls();
  driven_.r_ready = !stalls();
  return driven_;
}

void ControlHost::clock(const Seen& seen) {
  const bool takes_address = driven_.aw_valid && seen.aw_ready;
  const bool takes_data = driven_.w_valid && seen.w_ready;
  if (takes_address != takes_data) {
    throw std::runtime_error("the port takes address and data of a write together");
  }
  if (takes_address) {
    write_.reset();
    driven_.aw_valid = false;
    driven_.w_valid = false;
  }
  if (driven_.ar_valid && seen.ar_ready) {
    read_.reset();
    driven_.ar_valid = false;
  }
  if (seen.b_valid && driven_.b_ready) {
    write_answers_.push_back({0, seen.b_resp != 0});
  }
  if (seen.r_valid && driven_.r_ready) {
    read_answers_.push_back({seen.r_data, seen.r_resp != 0});
  }
}

std::optional<ControlHost::Answer> ControlHost::take(std::deque<Answer>& answers) {
  if (answers.empty()) {
    return std::nullopt;
  }
  const Answer answer = answers.front();
  answers.pop_front();
  return answer;
}

}  // namespace flashloom::rtl
