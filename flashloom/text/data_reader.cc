#include "flashloom/text/data_reader.h"

#include <fmt/format.h>
#include <simdjson.h>

#include <cstring>
#include <fstream>

#include "flashloom/core/error.h"

namespace flashloom {
namespace {

// Calls `visit` with each line, without its line feed, and its number; says whether all was read.
void read_lines(const std::filesystem::path& file,
                FunctionRef<void(std::string_view, int64_t)> visit) {
  std::error_code error;
  if (std::filesystem::is_directory(file, error)) {
    throw IoError(file.string(), "", "expected a file, got a directory");
  }
  std::ifstream stream(file, std::ios::binary);
  if (!stream) {
    throw IoError(file.string(), "", fmt::format("cannot be opened: {}", std::strerror(errno)));
  }
  std::string line;
  for (int64_t number = 1; std::getline(stream, line); ++number) {
    std::string_view content = line;
    if (number == 1 && content.starts_with("\xEF\xBB\xBF")) {
      content.remove_prefix(3);  // a byte order mark
    }
    visit(content, number);
  }
  if (stream.bad()) {
    throw IoError(file.string(), "", "cannot be read to its end");
  }
}

void read_text(const std::filesystem::path& file, FunctionRef<void(const DataRow&)> visit) {
  DataRow row{.kind = DataRowKind::document, .file = file.string(), .line = 1};
  read_lines(file, [&](std::string_view line, int64_t number) {
    if (!simdjson::validate_utf8(line)) {
      throw IoError(file.string(), fmt::format("line {}", number), "invalid UTF-8");
    }
    row.text += number == 1 ? "" : "\n";
    row.text += line;
  });
  if (row.text.empty()) {
    throw IoError(file.string(), "", "the file holds no text");
  }
  visit(row);
}

void read_json_lines(const std::filesystem::path& file, FunctionRef<void(const DataRow&)> visit) {
  int64_t rows = 0;
  read_lines(file, [&](std::string_view line, int64_t number) {
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) {
      return;
    }
    DataRow row;
    try {
      row = parse_data_row(line);
    } catch (const Error& error) {
      throw IoError(file.string(), fmt::format("line {}", number), error.what());
    }
    row.file = file.string();
    row.line = number;
    ++rows;
    visit(row);
  });
  if (rows == 0) {
    throw IoError(file.string(), "", "the file holds no rows");
  }
}

}  // namespace

void read_data(const std::filesystem::path& file, FunctionRef<void(const DataRow&)> visit) {
  const std::string ending = file.extension().string();
  if (ending == ".txt") {
    read_text(file, visit);
  } else if (ending == ".jsonl" || ending == ".ndjson") {
    read_json_lines(file, visit);
  } else {
    throw IoError(
        file.string(), "",
        fmt::format("expected a name ending in .jsonl, .ndjson or .txt, got '{}'", ending));
  }
}

}  // namespace flashloom
