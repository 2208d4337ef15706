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

/// What became of the rows; said to the user.
struct SupervisedCounts {
  int64_t rows = 0;
  int64_t examples = 0;
  int64_t cut = 0;          ///< rows longer than the sequence length, whose end is lost
  int64_t dropped = 0;      ///< rows without a token to learn, after cutting
  int64_t lost_tokens = 0;  ///< in the ends that were cut off and the rows that were dropped
};

struct SupervisedData {
  TokenDocuments documents;
  SupervisedCounts counts;
};

/// Reads and encodes whole files. A row longer than `sequence_length` tokens is cut; a plain text
/// file is cut into pieces of that length instead, so that nothing of it is lost.
/// Throws IoError as read_data and encode do, and if no example is left; InvalidArgument for a
/// sequence length below 2.
SupervisedData load_supervised(std::span<const std::filesystem::path> files,
                               const SupervisedEncoder& encoder, int64_t sequence_length);

/// "480 rows, 2 cut to 512 tokens, 1 without loss dropped" for the log.
std::string describe(const SupervisedCounts& counts, int64_t sequence_length);

}  // namespace flashloom
