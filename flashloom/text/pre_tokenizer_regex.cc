#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <array>
#include <string>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/text/pre_tokenizer.h"
#include "flashloom/text/unicode_utf8.h"

namespace flashloom {
namespace {

constexpr std::string_view kOp = "pre-tokenizer Split";

struct FreeRegex {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }

  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }

  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }

  void operator()(pcre2_jit_stack* stack) const { pcre2_jit_stack_free(stack); }
};

std::string error_text(int code) {
  std::array<PCRE2_UCHAR, 256> buffer{};
  pcre2_get_error_message(code, buffer.data(), buffer.size());
  return reinterpret_cast<const char*>(buffer.data());
}

/// From Oniguruma's (Ruby's) syntax, which `tokenizers` reads: \s is White_Space there, while
/// PCRE2's has U+180E too. Escapes that mean something else in PCRE2 are refused.
std::string translate(std::string_view pattern) {
  std::string out;
  for (size_t i = 0; i < pattern.size(); ++i) {
    if (pattern[i] != '\\' || i + 1 == pattern.size()) {
      out.push_back(pattern[i]);
      continue;
    }
    const char escaped = pattern[++i];
    if (escaped == 's') {
      out.append("\\p{White_Space}");
    } else if (escaped == 'S') {
      out.append("\\P{White_Space}");
    } else if (std::string_view("wWbBhHRXKGkg").find(escaped) != std::string_view::npos) {
      throw Unsupported(kOp, fmt::format("\\{} in the pattern {}", escaped, pattern));
    } else {
      out.push_back('\\');
      out.push_back(escaped);
    }
  }
  return out;
}

struct Match {
  size_t begin;
  size_t end;
  bool matched;
};

class RegexSplit : public PreTokenizer {
 public:
  explicit RegexSplit(const PreTokenizerStage& stage)
      : behavior_(stage.behavior), invert_(stage.invert) {
    const bool literal = stage.kind == PreTokenizerStage::kLiteral;
    const std::string pattern = literal ? stage.pattern : translate(stage.pattern);
    const uint32_t options = PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_MULTILINE);
    int error = 0;
    PCRE2_SIZE offset = 0;
    code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), options,
                              &error, &offset, nullptr));
    if (code_ == nullptr) {
      throw InvalidArgument(
          kOp, "pattern", "a regular expression",
          fmt::format("{} ({} at byte {})", stage.pattern, error_text(error), offset));
    }
    // Without JIT support on a machine the interpreter takes over.
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);
  }

  void split(std::string_view text, PieceSink sink) const override {
    std::vector<Match> pieces = matches(text);
    switch (behavior_) {
      case SplitBehavior::kIsolated:
      case SplitBehavior::kRemoved:
        break;
      case SplitBehavior::kContiguous:
        join(pieces, [](bool matched, bool previous) { return matched == previous; });
        break;
      case SplitBehavior::kMergedWithPrevious:
        join(pieces, [](bool matched, bool previous) { return matched && !previous; });
        break;
      case SplitBehavior::kMergedWithNext:
        join_next(pieces);
        break;
    }
    for (const Match& piece : pieces) {
      const size_t size = piece.end - piece.begin;
      if (size != 0 && !(behavior_ == SplitBehavior::kRemoved && piece.matched)) {
        sink(text.substr(piece.begin, size), {&size, 1});
      }
    }
  }

 private:
  /// Matches and the gaps between them, as Oniguruma's find_iter gives them: an empty match right
  /// behind a match is passed over, any other cuts.
  std::vector<Match> matches(std::string_view text) const {
    // A JIT frame of a group that repeats needs memory with the length of its match; 32 MB is
    // reserved, not used, and beyond it the match is an error.
    constexpr size_t kStackStart = 32 * 1024;
    constexpr size_t kStackLimit = 32 * 1024 * 1024;
    const std::unique_ptr<pcre2_match_data, FreeRegex> data(
        pcre2_match_data_create_from_pattern(code_.get(), nullptr));
    const std::unique_ptr<pcre2_match_context, FreeRegex> context(
        pcre2_match_context_create(nullptr));
    const std::unique_ptr<pcre2_jit_stack, FreeRegex> stack(
        pcre2_jit_stack_create(kStackStart, kStackLimit, nullptr));
    if (data == nullptr || context == nullptr) {
      throw OutOfMemory("pre-tokenizer Split: no memory for a match");
    }
    pcre2_jit_stack_assign(context.get(), nullptr, stack.get());
    std::vector<Match> found;
    size_t covered = 0;
    size_t start = 0;
    bool any = false;
    while (start <= text.size()) {
      const int count =
          pcre2_match(code_.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), start,
                      PCRE2_NO_UTF_CHECK, data.get(), context.get());
      if (count == PCRE2_ERROR_NOMATCH) {
        break;
      }
      if (count < 0) {
        throw Unsupported(kOp, fmt::format("a match of this pattern: {}", error_text(count)));
      }
      const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(data.get());
      const size_t begin = offsets[0];
      const size_t end = offsets[1];
      if (begin == end && any && end == covered) {
        start += start < text.size() ? decode_code_point(text.data() + start).size : 1;
        continue;
      }
      if (begin > covered) {
        found.push_back({covered, begin, invert_});
      }
      found.push_back({begin, end, !invert_});
      start = covered = end;
      any = true;
    }
    if (covered != text.size()) {
      found.push_back({covered, text.size(), invert_});
    }
    return found;
  }

  template <class Joins>
  static void join(std::vector<Match>& pieces, Joins joins) {
    size_t count = 0;
    bool previous = false;
    for (const Match piece : pieces) {
      if (count != 0 && joins(piece.matched, previous)) {
        pieces[count - 1].end = piece.end;
      } else {
        pieces[count++] = piece;
      }
      previous = piece.matched;
    }
    pieces.resize(count);
  }

  static void join_next(std::vector<Match>& pieces) {
    std::vector<Match> reversed;
    bool next = false;
    for (size_t i = pieces.size(); i-- > 0;) {
      if (pieces[i].matched && !next && !reversed.empty()) {
        reversed.back().begin = pieces[i].begin;
      } else {
        reversed.push_back(pieces[i]);
      }
      next = pieces[i].matched;
    }
    pieces.assign(reversed.rbegin(), reversed.rend());
  }

  std::unique_ptr<pcre2_code, FreeRegex> code_;
  SplitBehavior behavior_;
  bool invert_;
};

}  // namespace

std::unique_ptr<PreTokenizer> make_regex_split(const PreTokenizerStage& stage) {
  return std::make_unique<RegexSplit>(stage);
}

}  // namespace flashloom
