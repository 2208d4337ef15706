#include "flashloom/text/tokenizer_added.h"

#include <utf8proc.h>

#include <algorithm>

#include "flashloom/text/unicode_class.h"
#include "flashloom/text/unicode_utf8.h"

namespace flashloom {
namespace {

size_t byte_at(std::string_view text, size_t position) {
  return static_cast<unsigned char>(text[position]);
}

bool is_space(uint32_t code_point) {
  return (CodePointClasses::instance()[code_point] & kSpace) != 0;
}

/// \w of Rust's regex crate: letters, marks, decimal digits, letter numbers, connectors, joiners,
/// and the circled and squared letters, which are alphabetic symbols.
bool is_word(uint32_t code_point) {
  if (code_point == 0x200C || code_point == 0x200D ||
      (code_point >= 0x24B6 && code_point <= 0x24E9) ||
      (code_point >= 0x1F130 && code_point <= 0x1F149) ||
      (code_point >= 0x1F150 && code_point <= 0x1F169) ||
      (code_point >= 0x1F170 && code_point <= 0x1F189)) {
    return true;
  }
  switch (utf8proc_category(static_cast<utf8proc_int32_t>(code_point))) {
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      return (CodePointClasses::instance()[code_point] & kLetter) != 0;
  }
}

bool ends_with_word(std::string_view text) {
  const char* end = text.data() + text.size();
  return !text.empty() && is_word(decode_code_point(previous_code_point(text.data(), end)).value);
}

bool starts_with_word(std::string_view text) {
  return !text.empty() && is_word(decode_code_point(text.data()).value);
}

/// Where the white space before `position` begins.
size_t spaces_before(std::string_view text, size_t position) {
  while (position > 0) {
    const char* last = previous_code_point(text.data(), text.data() + position);
    if (!is_space(decode_code_point(last).value)) {
      break;
    }
    position = static_cast<size_t>(last - text.data());
  }
  return position;
}

size_t spaces_after(std::string_view text, size_t position) {
  while (position < text.size()) {
    const DecodedCodePoint decoded = decode_code_point(text.data() + position);
    if (!is_space(decoded.value)) {
      break;
    }
    position += decoded.size;
  }
  return position;
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<AddedToken> tokens) : tokens_(std::move(tokens)) {
  std::erase_if(tokens_, [](const AddedToken& token) { return token.content.empty(); });
  std::stable_sort(tokens_.begin(), tokens_.end(),
                   [](const AddedToken& a, const AddedToken& b) { return a.content < b.content; });
  const auto equal = [](const AddedToken& a, const AddedToken& b) {
    return a.content == b.content;
  };
  tokens_.erase(std::unique(tokens_.begin(), tokens_.end(), equal), tokens_.end());
  for (const AddedToken& token : tokens_) {
    ++first_byte_[byte_at(token.content, 0) + 1];
  }
  for (size_t i = 1; i < first_byte_.size(); ++i) {
    first_byte_[i] += first_byte_[i - 1];
  }
}

const AddedToken* AddedTokenMatcher::longest_at(std::string_view text, size_t position) const {
  const size_t byte = byte_at(text, position);
  auto first = tokens_.begin() + first_byte_[byte];
  auto last = tokens_.begin() + first_byte_[byte + 1];
  const AddedToken* longest = nullptr;
  // [first, last) agree with the text in `depth` bytes.
  for (size_t depth = 1; first != last; ++depth) {
    if (first->content.size() == depth) {
      longest = &*first;
      ++first;
    }
    if (position + depth == text.size()) {
      break;
    }
    const size_t next = byte_at(text, position + depth);
    first = std::partition_point(
        first, last, [&](const AddedToken& token) { return byte_at(token.content, depth) < next; });
    last = std::partition_point(first, last, [&](const AddedToken& token) {
      return byte_at(token.content, depth) == next;
    });
  }
  return longest;
}

void AddedTokenMatcher::find(std::vector<AddedTokenMatch>& matches, std::string_view text,
                             bool parse_special_tokens) const {
  matches.clear();
  if (tokens_.empty()) {
    return;
  }
  size_t covered = 0;
  for (size_t position = 0; position < text.size();) {
    const size_t byte = byte_at(text, position);
    if (first_byte_[byte] == first_byte_[byte + 1]) {
      ++position;
      continue;
    }
    const AddedToken* token = longest_at(text, position);
    if (token == nullptr) {
      ++position;
      continue;
    }
    size_t begin = position;
    size_t end = position + token->content.size();
    position = end;
    if (token->special && !parse_special_tokens) {
      continue;
    }
    if (token->single_word &&
        (ends_with_word(text.substr(0, begin)) || starts_with_word(text.substr(end)))) {
      continue;
    }
    if (token->lstrip) {
      begin = std::max(spaces_before(text, begin), covered);
    }
    if (token->rstrip) {
      end = spaces_after(text, end);
    }
    matches.push_back({begin, end, token->id});
    covered = end;
  }
}

}  // namespace flashloom
