#include "flashloom/text/supervised_data.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <exception>
#include <utility>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/text/data_reader.h"
#include "flashloom/text/token_shard.h"

namespace flashloom {
namespace {

constexpr std::array<std::string_view, 4> kLongRows = {"cut", "split", "drop", "refuse"};

bool has_loss(std::span<const uint8_t> loss) {
  return std::any_of(loss.begin() + 1, loss.end(), [](uint8_t flag) { return flag != 0; });
}

void validate(const SupervisedOptions& options) {
  if (options.sequence_length < 2) {
    throw InvalidArgument("load_supervised", "sequence_length", "2 or more",
                          fmt::format("{}", options.sequence_length));
  }
  if (!(options.held_out >= 0 && options.held_out < 1)) {
    throw InvalidArgument("load_supervised", "held_out", "a share from 0 to less than 1",
                          fmt::format("{}", options.held_out));
  }
}

// Rows of a batch are encoded in parallel and added in order.
class Loader {
 public:
  Loader(const SupervisedEncoder& encoder, const SupervisedOptions& options)
      : encoder_(encoder), options_(options) {
    for (SupervisedData* side : {&split_.train, &split_.held_out}) {
      if (!options.spill_directory.empty()) {
        side->documents = TokenDocuments(options.spill_directory, options.memory_bytes);
      }
    }
  }

  void load(const DataFile& file) {
    split_.train.documents.begin_group(file.weight);
    if (file.path.extension() == ".bin") {
      load_shard(file);
      return;
    }
    read_data(file.path, [&](DataRow&& row) {
      bytes_ += row.bytes;
      rows_.push_back(std::move(row));
      if (bytes_ >= kBatchBytes || rows_.size() >= kBatchRows) {
        add_batch();
      }
    });
    add_batch();
  }

  SupervisedSplit finish() { return std::move(split_); }

 private:
  // Enough work for all threads, little memory.
  static constexpr int64_t kBatchBytes = 8 << 20;
  static constexpr size_t kBatchRows = 4096;

  struct Encoded {
    SupervisedExample example;
    std::exception_ptr error;
  };

  void load_shard(const DataFile& file) {
    read_token_shard(
        file.path, encoder_.tokenizer(), options_.sequence_length,
        [&](std::span<const int32_t> tokens, std::span<const uint8_t> loss, bool begins) {
          split_.train.counts.rows += begins ? 1 : 0;
          add_piece(side_of(XXH3_64bits(tokens.data(), tokens.size_bytes())), tokens, loss);
        });
  }

  void add_batch() {
    std::vector<Encoded> encoded(rows_.size());
    parallel_for(static_cast<int64_t>(rows_.size()), [&](int64_t index) {
      const auto i = static_cast<size_t>(index);
      try {
        encoded[i].example = encoder_.encode(rows_[i]);
      } catch (...) {
        encoded[i].error = std::current_exception();
      }
    });
    for (size_t i = 0; i < rows_.size(); ++i) {
      if (encoded[i].error) {
        std::rethrow_exception(encoded[i].error);  // of the first row, whatever thread was first
      }
      add(rows_[i], encoded[i].example);
    }
    rows_.clear();
    bytes_ = 0;
  }

  SupervisedData& side_of(uint64_t hash) {
    const double place = static_cast<double>(hash) * 0x1p-64;
    return place < options_.held_out ? split_.held_out : split_.train;
  }

  void add(const DataRow& row, const SupervisedExample& example) {
    const auto most = static_cast<size_t>(options_.sequence_length);
    if (row.kind == DataRowKind::document) {
      split_.train.counts.rows += row.begins ? 1 : 0;
      add_pieces(example, nullptr);
      return;
    }
    SupervisedData& side = side_of(row.hash);
    ++side.counts.rows;
    const auto tokens = static_cast<int64_t>(example.tokens.size());
    const bool fits = example.tokens.size() <= most;
    side.counts.longer += fits ? 0 : 1;
    if (fits || options_.long_rows == LongRows::split) {
      add_pieces(example, &side);
    } else if (options_.long_rows == LongRows::cut) {
      side.counts.lost_tokens += tokens - options_.sequence_length;
      add_piece(side, std::span(example.tokens).first(most), std::span(example.loss).first(most));
    } else if (options_.long_rows == LongRows::drop) {
      side.counts.lost_tokens += tokens;
    } else {
      throw IoError(row.file, fmt::format("line {}", row.line),
                    fmt::format("expected at most {} tokens (--seq-len), found {}; --long cut, "
                                "split or drop takes such rows",
                                options_.sequence_length, tokens));
    }
  }

  // To `side`, or each to the side that its tokens decide.
  void add_pieces(const SupervisedExample& example, SupervisedData* side) {
    const std::span<const int32_t> tokens(example.tokens);
    const std::span<const uint8_t> loss(example.loss);
    const auto most = static_cast<size_t>(options_.sequence_length);
    for (size_t at = 0; at < tokens.size() || at == 0; at += most) {
      const size_t size = std::min(most, tokens.size() - at);
      const auto piece = tokens.subspan(at, size);
      add_piece(side != nullptr ? *side : side_of(XXH3_64bits(piece.data(), piece.size_bytes())),
                piece, loss.subspan(at, size));
    }
  }

  static void add_piece(SupervisedData& side, std::span<const int32_t> tokens,
                        std::span<const uint8_t> loss) {
    if (!tokens.empty() && has_loss(loss)) {
      side.documents.add(tokens, loss);
      ++side.counts.examples;
    } else {
      ++side.counts.dropped;
      side.counts.lost_tokens += static_cast<int64_t>(tokens.size());
    }
  }

  const SupervisedEncoder& encoder_;
  const SupervisedOptions& options_;
  SupervisedSplit split_;
  std::vector<DataRow> rows_;
  int64_t bytes_ = 0;
};

}  // namespace

DataFile parse_data_file(std::string_view text) {
  const size_t colon = text.rfind(':');
  std::error_code ignored;
  if (colon == std::string_view::npos || std::filesystem::exists(text, ignored)) {
    return std::string(text);
  }
  const std::string_view number = text.substr(colon + 1);
  DataFile file = std::string(text.substr(0, colon));
  const auto [end, code] =
      std::from_chars(number.data(), number.data() + number.size(), file.weight);
  constexpr double kMost = 1e6;  // an epoch's list of documents must fit memory
  if (code != std::errc() || end != number.data() + number.size() ||
      !(file.weight > 0 && file.weight <= kMost)) {
    throw InvalidArgument("parse_data_file", text, "FILE or FILE:WEIGHT, a number above 0",
                          fmt::format("the weight \"{}\"", number));
  }
  return file;
}

LongRows parse_long_rows(std::string_view name) {
  const auto* const found = std::find(kLongRows.begin(), kLongRows.end(), name);
  if (found == kLongRows.end()) {
    throw InvalidArgument("parse_long_rows", "name", "cut, split, drop or refuse",
                          fmt::format("\"{}\"", name));
  }
  return static_cast<LongRows>(found - kLongRows.begin());
}

std::string_view long_rows_name(LongRows value) {
  return kLongRows[static_cast<size_t>(value)];
}

SupervisedSplit load_supervised(std::span<const DataFile> files, const SupervisedEncoder& encoder,
                                const SupervisedOptions& options) {
  validate(options);
  Loader loader(encoder, options);
  for (const DataFile& file : files) {
    loader.load(file);
  }
  SupervisedSplit split = loader.finish();
  const auto require = [&](const SupervisedData& side, std::string_view what) {
    if (side.counts.examples == 0) {
      throw IoError(
          files.empty() ? "data" : files.front().path.string(), "",
          fmt::format("no example is left to {}: {}", what, describe(side.counts, options)));
    }
  };
  require(split.train, "learn from");
  if (options.held_out > 0) {
    require(split.held_out, "hold out");
  }
  return split;
}

std::string describe(const SupervisedCounts& counts, const SupervisedOptions& options) {
  constexpr std::array<std::string_view, 4> kDone = {"cut", "split", "dropped", "refused"};
  return fmt::format(
      "{} rows, {} examples; {} longer than {} tokens {}, {} without loss dropped, {} tokens lost",
      counts.rows, counts.examples, counts.longer, options.sequence_length,
      kDone[static_cast<size_t>(options.long_rows)], counts.dropped, counts.lost_tokens);
}

}  // namespace flashloom
