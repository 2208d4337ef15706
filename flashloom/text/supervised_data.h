#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "flashloom/text/supervised.h"
#include "flashloom/text/token_documents.h"

namespace flashloom {

/// A file to train on, and how many times an epoch draws each of its examples.
struct DataFile {
  DataFile(std::filesystem::path name) : path(std::move(name)) {}

  DataFile(const std::string& name) : path(name) {}

  std::filesystem::path path;
  double weight = 1;
};

/// "rows.jsonl" or "rows.jsonl:2.5". A file whose name ends so is that file. Throws InvalidArgument
/// for a weight that is no number above 0.
DataFile parse_data_file(std::string_view text);

/// What becomes of a row of more tokens than the sequence length.
enum class LongRows : uint8_t {
  cut,    ///< its end is lost
  split,  ///< it becomes several examples, which do not see one another
  drop,   ///< it is left out
  refuse  ///< it is an error
};

LongRows parse_long_rows(std::string_view name);
std::string_view long_rows_name(LongRows value);

struct SupervisedOptions {
  int64_t sequence_length = 1024;
  LongRows long_rows = LongRows::cut;
  /// Share of the rows that are held out. A row's own bytes decide (their XXH3), so it is on the
  /// same side in any file, at any place, and so is a copy of it. Pieces of a plain text file and
  /// of a file of tokens are decided by their tokens.
  double held_out = 0;
  /// Where tokenized data goes beyond `memory_bytes`; empty: it stays in memory.
  std::string spill_directory = {};
  int64_t memory_bytes = 64 << 20;
};

/// What became of the rows; said to the user.
struct SupervisedCounts {
  int64_t rows = 0;
  int64_t examples = 0;
  int64_t longer = 0;       ///< rows longer than the sequence length
  int64_t dropped = 0;      ///< examples without a token to learn
  int64_t lost_tokens = 0;  ///< of what was cut off or dropped
};

struct SupervisedData {
  TokenDocuments documents;  ///< a group a file
  SupervisedCounts counts;
};

struct SupervisedSplit {
  SupervisedData train;
  SupervisedData held_out;  ///< empty without SupervisedOptions::held_out
};

/// Reads and encodes whole files, rows in parallel, in the order of files and rows. A plain text
/// file is cut into pieces of the sequence length whatever its size, so that nothing of it is lost;
/// so are the documents of a file of tokens (`.bin`, token_shard.h).
/// Throws IoError as read_data and encode do, for a row that is refused, and if no example is left
/// on a side; InvalidArgument for a sequence length below 2 or a share outside [0, 1).
SupervisedSplit load_supervised(std::span<const DataFile> files, const SupervisedEncoder& encoder,
                                const SupervisedOptions& options);

/// "480 rows, 479 examples; 2 longer than 512 tokens cut, 1 without loss dropped, 90 tokens lost".
std::string describe(const SupervisedCounts& counts, const SupervisedOptions& options);

}  // namespace flashloom
