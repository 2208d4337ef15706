#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace flashloom {

/// An entry of `added_tokens`: text that becomes one token before anything else sees it.
struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool special = false;
  bool normalized = false;   ///< matched after the normaliser instead of before it
  bool single_word = false;  ///< not beside a letter, mark, digit or underscore
  bool lstrip = false;       ///< takes the white space on its left with it
  bool rstrip = false;       ///< and on its right
};

struct AddedTokenMatch {
  size_t begin;
  size_t end;
  int32_t id;
};

/// Finds added tokens in UTF-8 text: leftmost, and of those the longest; a match that single_word
/// or the caller refuses is passed over as a whole, as `tokenizers` does.
class AddedTokenMatcher {
 public:
  AddedTokenMatcher() = default;
  /// Empty contents are ignored; of equal contents the first counts.
  explicit AddedTokenMatcher(std::vector<AddedToken> tokens);

  bool empty() const { return tokens_.empty(); }

  /// Replaces `matches`. Matches come in order; a match may begin before the end of the one before
  /// it, when that one's rstrip took its first characters.
  void find(std::vector<AddedTokenMatch>& matches, std::string_view text,
            bool parse_special_tokens) const;

 private:
  const AddedToken* longest_at(std::string_view text, size_t position) const;

  std::vector<AddedToken> tokens_;          // sorted by content, bytewise
  std::array<uint32_t, 257> first_byte_{};  // tokens_ that begin with byte b: [b], [b + 1]
};

}  // namespace flashloom
