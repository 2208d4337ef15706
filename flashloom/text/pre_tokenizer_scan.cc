// Scanners for the known patterns. A scanner looks at one byte where the text is ASCII, and takes
// each piece's alternatives in the order of the regular expression.
#include <array>
#include <cstdint>

#include "flashloom/core/error.h"
#include "flashloom/text/pre_tokenizer.h"
#include "flashloom/text/unicode_class.h"
#include "flashloom/text/unicode_utf8.h"

namespace flashloom {
namespace {

constexpr uint8_t kNewline = 64;     // \r or \n, always with kSpace
constexpr uint8_t kMultibyte = 128;  // ask the table

constexpr std::array<uint8_t, 256> make_byte_classes() {
  std::array<uint8_t, 256> classes{};
  for (unsigned c = 0; c < 256; ++c) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    const bool number = c >= '0' && c <= '9';
    const bool newline = c == '\r' || c == '\n';
    const bool space = c == ' ' || (c >= 9 && c <= 13);
    classes[c] = static_cast<uint8_t>((letter ? kLetter : 0) | (number ? kNumber | kDigit : 0) |
                                      (space ? kSpace : 0) | (newline ? kNewline : 0) |
                                      (c >= 0x80 ? kMultibyte : 0));
  }
  return classes;
}

constexpr std::array<uint8_t, 256> kByteClasses = make_byte_classes();

struct Character {
  uint8_t bits;
  uint8_t size;
};

class Scanner {
 public:
  explicit Scanner(const char* end) : classes_(CodePointClasses::instance()), end_(end) {}

  Character at(const char* p) const {
    const uint8_t bits = kByteClasses[static_cast<unsigned char>(*p)];
    if (bits != kMultibyte) [[likely]] {
      return {bits, 1};
    }
    const DecodedCodePoint decoded = decode_code_point(p);
    return {classes_[decoded.value], static_cast<uint8_t>(decoded.size)};
  }

  /// End of the run from `p` of characters for which (bits & mask) is not 0, or is 0.
  template <bool kInClass>
  const char* run(const char* p, uint8_t mask) const {
    while (p < end_) {
      const Character c = at(p);
      if (((c.bits & mask) != 0) != kInClass) {
        break;
      }
      p += c.size;
    }
    return p;
  }

  /// \s+(?!\S)|\s+ from a space: the run without its last character when something follows it
  /// that the pattern sees; what is of class `apart` it does not see.
  const char* spaces(const char* begin, const char* run_end, uint8_t apart = 0) const {
    if (run_end == end_ || (at(run_end).bits & apart) != 0) {
      return run_end;
    }
    const char* last = previous_code_point(begin, run_end);
    return last == begin ? run_end : last;
  }

  const char* end() const { return end_; }

 private:
  const CodePointClasses& classes_;
  const char* end_;
};

/// Length of 's 't 're 've 'm 'll 'd after the apostrophe at `p`, or 0. Ignoring case also accepts
/// U+017F, which folds to s.
template <bool kIgnoreCase>
size_t contraction(const char* p, const char* end) {
  const auto left = static_cast<size_t>(end - p);
  if (left < 2) {
    return 0;
  }
  const auto lower = [p](size_t i) {
    return static_cast<char>(kIgnoreCase && p[i] >= 'A' && p[i] <= 'Z' ? p[i] + 32 : p[i]);
  };
  const char first = lower(1);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') {
    return 2;
  }
  if (left < 3) {
    return 0;
  }
  if (kIgnoreCase && p[1] == '\xC5' && p[2] == '\xBF') {
    return 3;
  }
  const char second = lower(2);
  const bool found =
      ((first == 'r' || first == 'v') && second == 'e') || (first == 'l' && second == 'l');
  return found ? 3 : 0;
}

/// With `kApart`, characters of that class are pieces by themselves, and the pattern is matched
/// between them as if the text ended there.
template <uint8_t kApart>
struct Gpt2 {
  static const char* next(const Scanner& scan, const char* p) {
    Character c = scan.at(p);
    if ((c.bits & kApart) != 0) {
      return p + c.size;
    }
    if (*p == '\'') {
      if (const size_t size = contraction<false>(p, scan.end())) {
        return p + size;
      }
    }
    const char* body = p;
    if (*p == ' ' && p + 1 < scan.end()) {
      const Character following = scan.at(p + 1);
      if ((following.bits & (kSpace | kApart)) == 0) {
        body = p + 1;
        c = following;
      }
    }
    if ((c.bits & kLetter) != 0) {
      return scan.run<true>(body + c.size, kLetter);
    }
    if ((c.bits & kNumber) != 0) {
      return scan.run<true>(body + c.size, kNumber);
    }
    if ((c.bits & kSpace) == 0) {
      return scan.run<false>(body + c.size, kLetter | kNumber | kSpace | kApart);
    }
    return scan.spaces(p, scan.run<true>(p + c.size, kSpace), kApart);
  }
};

template <int kMaxNumber>
struct CaseFolding {
  static const char* next(const Scanner& scan, const char* p) {
    const Character c = scan.at(p);
    if (*p == '\'') {
      if (const size_t size = contraction<true>(p, scan.end())) {
        return p + size;
      }
    }
    if ((c.bits & kLetter) != 0) {
      return scan.run<true>(p + c.size, kLetter);
    }
    if ((c.bits & kNumber) != 0) {
      const char* q = p + c.size;
      for (int count = 1; count < kMaxNumber && q < scan.end(); ++count) {
        const Character digit = scan.at(q);
        if ((digit.bits & kNumber) == 0) {
          break;
        }
        q += digit.size;
      }
      return q;
    }
    const char* after = p + c.size;
    Character following{kSpace, 0};
    if (after < scan.end()) {
      following = scan.at(after);
      if ((c.bits & kNewline) == 0 && (following.bits & kLetter) != 0) {
        return scan.run<true>(after + following.size, kLetter);
      }
    }
    constexpr uint8_t kNotOther = kLetter | kNumber | kSpace;
    if ((c.bits & kSpace) == 0 || (*p == ' ' && (following.bits & kNotOther) == 0)) {
      const char* q = scan.run<false>(after, kNotOther);
      while (q < scan.end() && (*q == '\r' || *q == '\n')) {
        ++q;
      }
      return q;
    }
    // The last newline of the run of spaces, if any, ends the piece.
    const char* q = p;
    const char* last_newline = nullptr;
    while (q < scan.end()) {
      const Character space = scan.at(q);
      if ((space.bits & kSpace) == 0) {
        break;
      }
      q += space.size;
      if ((space.bits & kNewline) != 0) {
        last_newline = q;
      }
    }
    return last_newline != nullptr ? last_newline : scan.spaces(p, q);
  }
};

/// Gathers ends and hands them on in batches.
class Batch {
 public:
  Batch(const char* begin, PieceSink sink) : begin_(begin), sink_(sink) {}

  void add(const char* end) {
    ends_[count_++] = static_cast<size_t>(end - begin_);
    if (count_ == ends_.size()) {
      flush();
    }
  }

  void flush() {
    if (count_ != 0) {
      const size_t size = ends_[count_ - 1];
      sink_({begin_, size}, {ends_.data(), count_});
      begin_ += size;
      count_ = 0;
    }
  }

 private:
  const char* begin_;
  PieceSink sink_;
  std::array<size_t, 256> ends_;
  size_t count_ = 0;
};

template <class Pattern>
class ScannedPattern : public PreTokenizer {
 public:
  void split(std::string_view text, PieceSink sink) const override {
    const Scanner scan(text.data() + text.size());
    Batch batch(text.data(), sink);
    for (const char* p = text.data(); p < scan.end();) {
      p = Pattern::next(scan, p);
      batch.add(p);
    }
    batch.flush();
  }
};

}  // namespace

std::unique_ptr<PreTokenizer> make_known_pattern(KnownPattern pattern) {
  switch (pattern) {
    case KnownPattern::kGpt2:
      return std::make_unique<ScannedPattern<Gpt2<0>>>();
    case KnownPattern::kDigitsGpt2:
      return std::make_unique<ScannedPattern<Gpt2<kDigit>>>();
    case KnownPattern::kQwen2:
      return std::make_unique<ScannedPattern<CaseFolding<1>>>();
    case KnownPattern::kLlama3:
      return std::make_unique<ScannedPattern<CaseFolding<3>>>();
  }
  throw InvalidArgument("make_known_pattern", "pattern", "a KnownPattern",
                        std::to_string(static_cast<int>(pattern)));
}

}  // namespace flashloom
