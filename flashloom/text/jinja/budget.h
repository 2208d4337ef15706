#pragma once

#include <cstddef>
#include <cstdint>

#include "flashloom/text/jinja/template_error.h"

namespace flashloom::jinja {

/// What a short string of its own costs in a list: its allocation.
inline constexpr int64_t kStringUnits = 4;

/// What one rendering may cost, so that a hostile template can neither hang nor fill the memory. A
/// unit is a node evaluated, an element visited or 16 bytes of text made: 32 million are a second
/// or two and at most half a gigabyte, and a thousand times what a long conversation needs.
class Budget {
 public:
  explicit Budget(int64_t units) : left_(units) {}

  void charge(int64_t units) {
    left_ -= units;
    if (left_ < 0) {
      throw ValueError("rendering exceeds its limit of work");
    }
  }

  void charge_text(size_t bytes) { charge(1 + static_cast<int64_t>(bytes / 16)); }

 private:
  int64_t left_;
};

}  // namespace flashloom::jinja
