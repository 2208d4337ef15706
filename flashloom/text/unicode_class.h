#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace flashloom {

/// What pre-tokenizers and NFC ask of a code point, as Hugging Face `tokenizers` answers it
/// (tools/make_unicode_ranges.py reads the ranges off its behaviour).
enum CodePointClass : uint8_t {
  kLetter = 1,     ///< \p{L}, Unicode 16
  kNumber = 2,     ///< \p{N}, Unicode 16
  kSpace = 4,      ///< \s, that is White_Space
  kDigit = 8,      ///< set apart by the Digits pre-tokenizer: \p{N}, Unicode 17
  kCombines = 16,  ///< NFC may change it, reorder it or join it to what stands before it
  kOpaque = 32,    ///< NFC leaves it alone, although a later Unicode does not
};

/// Two-stage table over all code points; blocks of 256, equal blocks stored once.
class CodePointClasses {
 public:
  /// The one immutable table.
  static const CodePointClasses& instance();

  uint8_t operator[](uint32_t code_point) const {
    return blocks_[size_t{index_[code_point >> 8]} * 256 + (code_point & 255)];
  }

 private:
  CodePointClasses();
  std::array<uint8_t, 0x1100> index_{};
  std::vector<uint8_t> blocks_;
};

}  // namespace flashloom
