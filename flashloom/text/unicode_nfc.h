#pragma once

#include <string>
#include <string_view>

namespace flashloom {

/// True if NFC surely leaves `text` (UTF-8) as it is: all below U+0300. One pass over the bytes.
bool is_trivially_nfc(std::string_view text);

/// Appends the NFC of `text` (UTF-8), as Hugging Face `tokenizers` computes it (characters newer
/// than its tables stand alone). O(n log n) in the longest run of combining marks, else linear.
void append_nfc(std::string& out, std::string_view text);

}  // namespace flashloom
