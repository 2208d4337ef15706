#pragma once

#include <filesystem>

#include "flashloom/core/function_ref.h"
#include "flashloom/text/data_row.h"

namespace flashloom {

/// Calls `visit` with each row of a file, in order: `.jsonl` and `.ndjson` line by line (blank
/// lines are skipped), `.txt` as one document (a file of many megabytes in several rows, which
/// together are its text). Memory is that of a row. Throws IoError naming file and line: for a file
/// that cannot be read, another ending, invalid UTF-8 or JSON, deep nesting, missing, mixed or
/// wrong fields, and for a file without rows. What `visit` throws goes through.
void read_data(const std::filesystem::path& file, FunctionRef<void(DataRow&&)> visit);

}  // namespace flashloom
