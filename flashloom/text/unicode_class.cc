#include "flashloom/text/unicode_class.h"

#include <algorithm>

namespace flashloom {
namespace {

struct Range {
  uint32_t first;
  uint32_t last;
  uint8_t bits;
};

constexpr Range kRanges[] = {
#include "flashloom/text/unicode_ranges.inc"
};

}  // namespace

CodePointClasses::CodePointClasses() {
  std::vector<uint8_t> flat(0x110000, 0);
  for (const Range& range : kRanges) {
    std::fill(flat.begin() + range.first, flat.begin() + range.last + 1, range.bits);
  }
  for (size_t block = 0; block < index_.size(); ++block) {
    const auto* values = flat.data() + block * 256;
    size_t found = 0;
    while (found * 256 < blocks_.size() &&
           !std::equal(values, values + 256, blocks_.data() + found * 256)) {
      ++found;
    }
    if (found * 256 == blocks_.size()) {
      blocks_.insert(blocks_.end(), values, values + 256);
    }
    // 123 different blocks today; a build with more than 256 would show in every golden test.
    index_[block] = static_cast<uint8_t>(found);
  }
}

const CodePointClasses& CodePointClasses::instance() {
  static const CodePointClasses table;
  return table;
}

}  // namespace flashloom
