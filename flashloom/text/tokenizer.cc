#include "flashloom/text/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>

#include "flashloom/core/error.h"
#include "flashloom/text/tokenizer_data.h"
#include "flashloom/text/unicode_nfc.h"
#include "flashloom/text/unicode_utf8.h"

namespace flashloom {
namespace {

/// One call of encode: added tokens, normaliser, added tokens, pre-tokenizer, BPE.
class Encoding {
 public:
  Encoding(const Tokenizer::Data& data, std::vector<int32_t>& ids, BpeScratch& scratch,
           bool parse_special_tokens)
      : data_(data), ids_(ids), scratch_(scratch), parse_special_tokens_(parse_special_tokens) {}

  void encode(std::string_view text) {
    for_each_gap(data_.raw_added, text, [this](std::string_view gap) { normalize(gap); });
  }

 private:
  template <class OnGap>
  void for_each_gap(const AddedTokenMatcher& matcher, std::string_view text, OnGap on_gap) {
    if (matcher.empty()) {
      on_gap(text);
      return;
    }
    std::vector<AddedTokenMatch> matches;
    matcher.find(matches, text, parse_special_tokens_);
    size_t covered = 0;
    for (const AddedTokenMatch& match : matches) {
      if (match.begin > covered) {
        on_gap(text.substr(covered, match.begin - covered));
      }
      ids_.push_back(match.id);
      covered = match.end;
    }
    if (covered < text.size()) {
      on_gap(text.substr(covered));
    }
  }

  void normalize(std::string_view text) {
    std::string normalized;
    if (data_.nfc && !is_trivially_nfc(text)) {
      normalized.reserve(text.size());
      append_nfc(normalized, text);
      text = normalized;
    }
    for_each_gap(data_.normalized_added, text, [this](std::string_view gap) { pieces(gap); });
  }

  void pieces(std::string_view text) {
    if (text.empty()) {
      return;
    }
    data_.pre_tokenizer->split(text, [this](std::string_view part, std::span<const size_t> ends) {
      data_.bpe.encode(ids_, part, ends, scratch_);
    });
  }

  const Tokenizer::Data& data_;
  std::vector<int32_t>& ids_;
  BpeScratch& scratch_;
  bool parse_special_tokens_;
};

/// Lends scratch memory for the time of a call.
class ScratchLoan {
 public:
  explicit ScratchLoan(const Tokenizer::Data& data) : data_(data), scratch_(data.take_scratch()) {}

  ~ScratchLoan() { data_.give_scratch(std::move(scratch_)); }

  ScratchLoan(const ScratchLoan&) = delete;
  ScratchLoan& operator=(const ScratchLoan&) = delete;

  BpeScratch& operator*() { return *scratch_; }

 private:
  const Tokenizer::Data& data_;
  std::unique_ptr<BpeScratch> scratch_;
};

}  // namespace

std::unique_ptr<BpeScratch> Tokenizer::Data::take_scratch() const {
  {
    const std::lock_guard lock(scratch_mutex);
    if (!free_scratch.empty()) {
      std::unique_ptr<BpeScratch> scratch = std::move(free_scratch.back());
      free_scratch.pop_back();
      return scratch;
    }
  }
  return std::make_unique<BpeScratch>();
}

void Tokenizer::Data::give_scratch(std::unique_ptr<BpeScratch> scratch) const {
  scratch->trim();
  const std::lock_guard lock(scratch_mutex);
  free_scratch.push_back(std::move(scratch));
}

Tokenizer Tokenizer::from_json(std::string_view text, std::string_view file_name) {
  return Tokenizer(read_tokenizer_json(text, file_name));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  std::vector<int32_t> ids;
  // English has about four bytes a token; growing a long list costs more than the room too many.
  ids.reserve(text.size() / 4 + 16);
  encode_append(ids, text, options);
  return ids;
}

void Tokenizer::encode_append(std::vector<int32_t>& ids, std::string_view text,
                              const EncodeOptions& options) const {
  if (text.size() >= UINT32_MAX) {
    throw InvalidArgument("Tokenizer::encode", "text", "less than 4 GiB",
                          fmt::format("{} bytes", text.size()));
  }
  if (options.add_special_tokens) {
    ids.insert(ids.end(), data_->prefix_ids.begin(), data_->prefix_ids.end());
  }
  ScratchLoan scratch(*data_);
  Encoding encoding(*data_, ids, *scratch, options.parse_special_tokens);
  if (is_valid_utf8(text)) {
    encoding.encode(text);
  } else {
    std::string repaired;
    append_repaired_utf8(repaired, text, false);
    encoding.encode(repaired);
  }
  if (options.add_special_tokens) {
    ids.insert(ids.end(), data_->suffix_ids.begin(), data_->suffix_ids.end());
  }
}

int32_t Tokenizer::vocabulary_size() const {
  return static_cast<int32_t>(data_->tokens.size());
}

std::optional<int32_t> Tokenizer::token_id(std::string_view token) const {
  const auto found = data_->ids.find(token);
  return found == data_->ids.end() ? std::nullopt : std::optional(found->second);
}

std::string_view Tokenizer::token(int32_t id) const {
  return id >= 0 && id < vocabulary_size() ? data_->tokens[static_cast<size_t>(id)].text
                                           : std::string_view();
}

std::string_view Tokenizer::token_bytes(int32_t id) const {
  return id >= 0 && id < vocabulary_size() ? data_->tokens[static_cast<size_t>(id)].bytes
                                           : std::string_view();
}

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && id < vocabulary_size() && data_->tokens[static_cast<size_t>(id)].special;
}

std::optional<int32_t> Tokenizer::bos_id() const {
  return data_->bos_id;
}

std::optional<int32_t> Tokenizer::eos_id() const {
  return data_->eos_id;
}

std::optional<int32_t> Tokenizer::padding_id() const {
  return data_->padding_id;
}

std::optional<int32_t> Tokenizer::unknown_id() const {
  return data_->unknown_id;
}

std::span<const int32_t> Tokenizer::end_ids() const {
  return data_->end_ids;
}

bool Tokenizer::is_end(int32_t id) const {
  return std::find(data_->end_ids.begin(), data_->end_ids.end(), id) != data_->end_ids.end();
}

std::span<const int32_t> Tokenizer::prefix_ids() const {
  return data_->prefix_ids;
}

std::span<const int32_t> Tokenizer::suffix_ids() const {
  return data_->suffix_ids;
}

const std::string& Tokenizer::chat_template() const {
  return data_->chat_template;
}

}  // namespace flashloom
