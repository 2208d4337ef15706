#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "flashloom/text/chat_template.h"
#include "flashloom/text/data_row.h"
#include "flashloom/text/token_documents.h"
#include "flashloom/text/tokenizer.h"

namespace flashloom {

/// A row as tokens; loss[i] is 1 where tokens[i] is to be learnt.
struct SupervisedExample {
  std::vector<int32_t> tokens;
  std::vector<uint8_t> loss;
};

/// Turns rows into tokens and loss masks.
///
/// Special tokens in any text are recognised. What the tokenizer puts before a text (BOS) stands
/// once, also if the text begins with it; a chat template writes its own.
/// - prompt and completion are encoded each by itself and joined, as inference sees them; the
///   completion bears loss, and the end-of-sequence token, which closes it unless it already ends
///   so.
/// - text bears loss throughout, and is closed likewise.
/// - In messages nothing is appended. An assistant's turn bears loss from after its header through
///   its end-of-turn token; the newline behind it bears none. Text before a turn, a turn, and what
///   follows are encoded each by itself, as inference sees them.
class SupervisedEncoder {
 public:
  explicit SupervisedEncoder(Tokenizer tokenizer);

  /// Throws IoError naming the row's file and line: for a template that refuses the row, for turns
  /// that cannot be found in what it renders, for messages without a chat template, and for texts
  /// if the tokenizer has no end-of-sequence token.
  SupervisedExample encode(const DataRow& row) const;

  const Tokenizer& tokenizer() const { return tokenizer_; }

 private:
  SupervisedExample encode_messages(const DataRow& row) const;
  void append(SupervisedExample& example, std::string_view text, bool loss) const;
  void begin(SupervisedExample& example) const;
  void close(SupervisedExample& example, size_t closed_from) const;

  Tokenizer tokenizer_;
  std::optional<ChatTemplate> chat_template_;
};

}  // namespace flashloom
