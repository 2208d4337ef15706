#include "flashloom/text/pre_tokenizer.h"

#include <vector>

#include "flashloom/text/unicode_class.h"
#include "flashloom/text/unicode_utf8.h"

namespace flashloom {
namespace {

class Digits : public PreTokenizer {
 public:
  explicit Digits(bool individual) : individual_(individual) {}

  void split(std::string_view text, PieceSink sink) const override {
    const CodePointClasses& classes = CodePointClasses::instance();
    std::vector<size_t> ends;
    bool was_digit = false;
    for (size_t position = 0; position < text.size();) {
      const DecodedCodePoint decoded = decode_code_point(text.data() + position);
      const bool is_digit = (classes[decoded.value] & kDigit) != 0;
      const bool joins = is_digit == was_digit && !(is_digit && individual_);
      if (position != 0 && !joins) {
        ends.push_back(position);
      }
      was_digit = is_digit;
      position += decoded.size;
    }
    ends.push_back(text.size());
    sink(text, ends);
  }

 private:
  bool individual_;
};

class PrefixSpace : public PreTokenizer {
 public:
  void split(std::string_view text, PieceSink sink) const override {
    std::string prefixed;
    if (text.front() != ' ') {
      prefixed.reserve(text.size() + 1);
      prefixed.push_back(' ');
      prefixed.append(text);
      text = prefixed;
    }
    const size_t end = text.size();
    sink(text, {&end, 1});
  }
};

class Sequence : public PreTokenizer {
 public:
  explicit Sequence(std::vector<std::unique_ptr<PreTokenizer>> stages)
      : stages_(std::move(stages)) {}

  void split(std::string_view text, PieceSink sink) const override { run(0, text, sink); }

 private:
  void run(size_t stage, std::string_view text, PieceSink sink) const {
    if (stage == stages_.size()) {
      const size_t end = text.size();
      sink(text, {&end, 1});
      return;
    }
    if (stage + 1 == stages_.size()) {
      stages_[stage]->split(text, sink);
      return;
    }
    stages_[stage]->split(text, [&](std::string_view part, std::span<const size_t> ends) {
      size_t begin = 0;
      for (const size_t end : ends) {
        run(stage + 1, part.substr(begin, end - begin), sink);
        begin = end;
      }
    });
  }

  std::vector<std::unique_ptr<PreTokenizer>> stages_;
};

bool is_pattern(const PreTokenizerStage& stage, std::string_view pattern) {
  return stage.kind == PreTokenizerStage::kPattern && stage.pattern == pattern &&
         stage.behavior == SplitBehavior::kIsolated && !stage.invert;
}

std::unique_ptr<PreTokenizer> make_stage(const PreTokenizerStage& stage) {
  // The known patterns match every character, so that no gap is left to isolate.
  if (is_pattern(stage, kGpt2Pattern)) {
    return make_known_pattern(KnownPattern::kGpt2);
  }
  if (is_pattern(stage, kQwen2Pattern)) {
    return make_known_pattern(KnownPattern::kQwen2);
  }
  if (is_pattern(stage, kLlama3Pattern)) {
    return make_known_pattern(KnownPattern::kLlama3);
  }
  if (stage.kind == PreTokenizerStage::kDigits) {
    return std::make_unique<Digits>(stage.individual);
  }
  if (stage.kind == PreTokenizerStage::kPrefixSpace) {
    return std::make_unique<PrefixSpace>();
  }
  return make_regex_split(stage);
}

}  // namespace

std::unique_ptr<PreTokenizer> make_pre_tokenizer(std::span<const PreTokenizerStage> stages) {
  std::vector<std::unique_ptr<PreTokenizer>> made;
  for (size_t i = 0; i < stages.size(); ++i) {
    if (stages[i].kind == PreTokenizerStage::kDigits && stages[i].individual &&
        i + 1 < stages.size() && is_pattern(stages[i + 1], kGpt2Pattern)) {
      made.push_back(make_known_pattern(KnownPattern::kDigitsGpt2));
      ++i;
    } else {
      made.push_back(make_stage(stages[i]));
    }
  }
  if (made.size() == 1) {
    return std::move(made.front());
  }
  return std::make_unique<Sequence>(std::move(made));
}

}  // namespace flashloom
