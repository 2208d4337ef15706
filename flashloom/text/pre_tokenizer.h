#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "flashloom/core/function_ref.h"

namespace flashloom {

/// Takes consecutive pieces of `text` (UTF-8): piece i is [ends[i - 1], ends[i]), the first begins
/// at 0. Called several times where there are many pieces, each time with the text's next part.
using PieceSink = FunctionRef<void(std::string_view text, std::span<const size_t> ends)>;

/// Cuts text into the pieces inside which BPE may merge. Immutable.
class PreTokenizer {
 public:
  virtual ~PreTokenizer() = default;
  /// `text` is not empty. Pieces come in order and are not empty.
  virtual void split(std::string_view text, PieceSink sink) const = 0;
};

/// The regular expressions that are scanned by hand. Their \s+(?!\S) alone needs a look-ahead.
enum class KnownPattern {
  kGpt2,        ///< kGpt2Pattern
  kDigitsGpt2,  ///< every number character by itself, then kGpt2Pattern between them (SmolLM2)
  kQwen2,       ///< kQwen2Pattern
  kLlama3,      ///< kLlama3Pattern
};

inline constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kQwen2Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
inline constexpr std::string_view kLlama3Pattern =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|)"
    R"( ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";

/// What becomes of the matches of a Split, in the words of `tokenizers`.
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

/// One step of a pre-tokenizer; each cuts the pieces of the one before it.
struct PreTokenizerStage {
  enum Kind {
    kPattern,      ///< a regular expression (`pattern`, `behavior`, `invert`)
    kLiteral,      ///< likewise, `pattern` taken literally
    kDigits,       ///< numbers set apart: each character (`individual`), or each run of them
    kPrefixSpace,  ///< a space put before every piece that does not begin with one
  };

  Kind kind = kPattern;
  std::string pattern;
  SplitBehavior behavior = SplitBehavior::kIsolated;
  bool invert = false;
  bool individual = false;

  bool operator==(const PreTokenizerStage&) const = default;
};

/// Known patterns are recognised by their text; any other goes to PCRE2 (with JIT, Unicode 14).
/// No stage: the text is one piece. Throws InvalidArgument or Unsupported for a pattern.
std::unique_ptr<PreTokenizer> make_pre_tokenizer(std::span<const PreTokenizerStage> stages);

// The parts, one file each.
std::unique_ptr<PreTokenizer> make_known_pattern(KnownPattern pattern);
std::unique_ptr<PreTokenizer> make_regex_split(const PreTokenizerStage& stage);

}  // namespace flashloom
