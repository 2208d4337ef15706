#include "flashloom/text/data_reader.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <simdjson.h>
#include <unistd.h>
#include <xxhash.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/text/json_value.h"

namespace flashloom {
namespace {

// A plain text file is cut into rows of about so many bytes, at line ends: memory stays constant.
constexpr size_t kTextRowBytes = 4 << 20;

/// Lines of a file through one buffer, which grows to the longest line.
class LineReader {
 public:
  explicit LineReader(const std::filesystem::path& file) : file_(file.string()) {
    std::error_code error;
    if (std::filesystem::is_directory(file, error)) {
      throw IoError(file_, "", "expected a file, got a directory");
    }
    descriptor_ = open(file_.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor_ < 0) {
      throw IoError(file_, "", fmt::format("cannot be opened: {}", std::strerror(errno)));
    }
    buffer_.resize(kBlock + JsonParser::kPadding);
  }

  ~LineReader() { close(descriptor_); }

  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  /// The next line without its line feed; false behind the last. JsonParser::kPadding bytes behind
  /// it may be read.
  bool next(std::string_view& line) {
    for (size_t searched = begin_;;) {
      const void* found = std::memchr(buffer_.data() + searched, '\n', end_ - searched);
      if (found != nullptr || (at_end_ && begin_ < end_)) {
        const size_t stop =
            found != nullptr ? static_cast<size_t>(static_cast<const char*>(found) - buffer_.data())
                             : end_;
        line = std::string_view(buffer_.data() + begin_, stop - begin_);
        begin_ = std::min(stop + 1, end_);
        if (++number_ == 1 && line.starts_with("\xEF\xBB\xBF")) {
          line.remove_prefix(3);  // a byte order mark
        }
        return true;
      }
      if (at_end_) {
        return false;
      }
      searched = end_ - begin_;
      read_more();
    }
  }

  int64_t number() const { return number_; }  // of the line that next() gave, from 1

 private:
  static constexpr size_t kBlock = 128 << 10;  // stays in the second-level cache

  void read_more() {
    std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
    if (buffer_.size() < end_ + kBlock / 2 + JsonParser::kPadding) {
      buffer_.resize(2 * buffer_.size());
    }
    const size_t room = buffer_.size() - JsonParser::kPadding - end_;
    ssize_t count = 0;
    do {
      count = read(descriptor_, buffer_.data() + end_, room);
    } while (count < 0 && errno == EINTR);
    if (count < 0) {
      throw IoError(file_, "", fmt::format("cannot be read to its end: {}", std::strerror(errno)));
    }
    end_ += static_cast<size_t>(count);
    at_end_ = count == 0;
  }

  std::string file_;
  int descriptor_ = -1;
  std::vector<char> buffer_;
  size_t begin_ = 0, end_ = 0;  // of what is read and not yet given
  bool at_end_ = false;
  int64_t number_ = 0;
};

uint64_t hash_of(std::string_view text) {
  return XXH3_64bits(text.data(), text.size());
}

void read_text(const std::filesystem::path& file, FunctionRef<void(DataRow&&)> visit) {
  LineReader reader(file);
  DataRow row{.kind = DataRowKind::document, .file = file.string(), .line = 1};
  const auto give = [&](bool last) {
    row.ends = last;
    row.bytes = static_cast<int64_t>(row.text.size());
    row.hash = hash_of(row.text);
    visit(DataRow(row));
    row.begins = false;
    row.text.clear();
  };
  for (std::string_view line; reader.next(line);) {
    if (!simdjson::validate_utf8(line)) {
      throw IoError(file.string(), fmt::format("line {}", reader.number()), "invalid UTF-8");
    }
    if (reader.number() > 1) {
      row.text += '\n';
    }
    // Where a line ends and text is sure to follow.
    if (row.text.size() >= kTextRowBytes && !line.empty()) {
      give(/*last=*/false);
      row.line = reader.number();
    }
    row.text += line;
  }
  if (row.text.empty()) {
    throw IoError(file.string(), "", "the file holds no text");
  }
  give(/*last=*/true);
}

void read_rows(const std::filesystem::path& file, FunctionRef<void(DataRow&&)> visit) {
  JsonParser parser;
  read_json_lines(file, [&](std::string_view line, int64_t number) {
    DataRow row = at_line(file, number, [&] { return parse_data_row(line, parser); });
    row.file = file.string();
    row.line = number;
    row.bytes = static_cast<int64_t>(line.size());
    row.hash = hash_of(line);
    visit(std::move(row));
  });
}

}  // namespace

void read_json_lines(const std::filesystem::path& file,
                     FunctionRef<void(std::string_view line, int64_t number)> visit) {
  LineReader reader(file);
  int64_t rows = 0;
  for (std::string_view line; reader.next(line);) {
    constexpr const char* kBlanks = " \t\r";
    const size_t first = line.find_first_not_of(kBlanks);
    if (first == std::string_view::npos) {
      continue;
    }
    line = line.substr(first, line.find_last_not_of(kBlanks) + 1 - first);
    ++rows;
    visit(line, reader.number());
  }
  if (rows == 0) {
    throw IoError(file.string(), "", "the file holds no rows");
  }
}

void read_data(const std::filesystem::path& file, FunctionRef<void(DataRow&&)> visit) {
  const std::string ending = file.extension().string();
  if (ending == ".txt") {
    read_text(file, visit);
  } else if (ending == ".jsonl" || ending == ".ndjson") {
    read_rows(file, visit);
  } else {
    throw IoError(
        file.string(), "",
        fmt::format("expected a name ending in .jsonl, .ndjson or .txt, got '{}'", ending));
  }
}

}  // namespace flashloom
