#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <filesystem>
#include <string_view>

#include "flashloom/core/error.h"
#include "flashloom/core/function_ref.h"
#include "flashloom/text/data_row.h"

namespace flashloom {

/// Calls `visit` with each row of a file, in order: `.jsonl` and `.ndjson` line by line (blank
/// lines are skipped), `.txt` as one document (a file of many megabytes in several rows, which
/// together are its text). Memory is that of a row. Throws IoError naming file and line: for a file
/// that cannot be read, another ending, invalid UTF-8 or JSON, deep nesting, missing, mixed or
/// wrong fields, and for a file without rows. What `visit` throws goes through.
void read_data(const std::filesystem::path& file, FunctionRef<void(DataRow&&)> visit);

/// Calls `visit` with each line of a file that is not blank, without the blanks around it, and its
/// number, from 1. JsonParser::kPadding bytes behind the line may be read. Throws IoError for a
/// file that cannot be read or has no such line.
void read_json_lines(const std::filesystem::path& file,
                     FunctionRef<void(std::string_view line, int64_t number)> visit);

/// What `parse` returns; an Error of it comes out as an IoError that names file and line.
template <class Parse>
auto at_line(const std::filesystem::path& file, int64_t number, const Parse& parse) {
  try {
    return parse();
  } catch (const Error& error) {
    throw IoError(file.string(), fmt::format("line {}", number), error.what());
  }
}

}  // namespace flashloom
