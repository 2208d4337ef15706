#pragma once

#include <span>
#include <string>
#include <string_view>

#include "flashloom/text/tokenizer.h"

namespace flashloom {

/// Bytes as a reader may see them: control and invisible characters, and bytes that are no UTF-8
/// (a token may hold half a character), become \n, \t, \x1b, \u200b.
std::string escape_invisible(std::string_view text);

/// An example token by token: runs of tokens with and without loss, each on lines of its own that
/// begin with "learn" or "read", tokens parted by │.
std::string preview_example(const Tokenizer& tokenizer, std::span<const int32_t> tokens,
                            std::span<const uint8_t> loss);

}  // namespace flashloom
