#pragma once

#include <filesystem>

#include "flashloom/core/function_ref.h"
#include "flashloom/text/data_row.h"

namespace flashloom {

/// Calls `visit` with each row of a file, in order: `.jsonl` and `.ndjson` line by line (blank
/// lines are skipped), `.txt` as one document. Throws IoError naming file and line: for a file that
/// cannot be read, another ending, invalid UTF-8 or JSON, deep nesting, missing, mixed or wrong
/// fields, and for a file without rows. What `visit` throws goes through.
void read_data(const std::filesystem::path& file, FunctionRef<void(const DataRow&)> visit);

}  // namespace flashloom
