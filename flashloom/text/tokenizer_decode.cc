#include "flashloom/text/tokenizer.h"
#include "flashloom/text/unicode_utf8.h"

namespace flashloom {

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (const int32_t id : ids) {
    if (!skip_special || !is_special(id)) {
      bytes.append(token_bytes(id));
    }
  }
  if (is_valid_utf8(bytes)) {
    return bytes;
  }
  std::string text;
  append_repaired_utf8(text, bytes, false);
  return text;
}

std::string StreamDecoder::push(int32_t id) {
  std::string text;
  if (skip_special_ && tokenizer_.is_special(id)) {
    return text;
  }
  pending_.append(tokenizer_.token_bytes(id));
  pending_.erase(0, append_repaired_utf8(text, pending_, true));
  return text;
}

std::string StreamDecoder::finish() {
  std::string text;
  append_repaired_utf8(text, pending_, false);
  pending_.clear();
  return text;
}

}  // namespace flashloom
