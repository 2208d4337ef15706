#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "flashloom/text/supervised_data.h"
#include "flashloom/text/tokenizer.h"

namespace flashloom {

/// A data set that was tokenized once, in a directory:
///
///   prepared.json            what decided the tokens, counts, and checksums
///   train.safetensors        "tokens" (tokens) i32, "loss" (tokens) u8, "lengths" (documents) i64
///   held_out.safetensors     the same, if anything is held out
///
/// Training maps the arrays; nothing is read into memory. Which documents share a bin is no part of
/// it: that is a function of their lengths, the seed, the epoch and what memory allows at once, and
/// takes a fraction of a microsecond a document. So a run's batches are bit for bit those of the
/// files that the set was made of.
struct PreparedSettings {
  int64_t sequence_length = 0;
  LongRows long_rows = LongRows::cut;
  double held_out = 0;             // share of the rows; 0 with files of their own
  std::vector<std::string> files;  // names, for people; weights are the documents' groups'
};

struct PreparedData {
  PreparedSettings settings;
  SupervisedSplit data;
};

/// Writes a set, replacing what is there; `prepared.json` last. Throws IoError.
void write_prepared(const std::string& directory, const PreparedSettings& settings,
                    const SupervisedSplit& data, const Tokenizer& tokenizer);

/// Whether there is a set in this directory.
bool is_prepared(const std::string& directory);

/// Throws IoError for a set that is damaged, or was made with another tokenizer or chat template
/// than `tokenizer` has. All tokens are read once, for their checksum.
PreparedData open_prepared(const std::string& directory, const Tokenizer& tokenizer);

}  // namespace flashloom
