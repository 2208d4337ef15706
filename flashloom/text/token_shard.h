#pragma once

#include <cstdint>
#include <filesystem>
#include <span>

#include "flashloom/core/function_ref.h"
#include "flashloom/text/tokenizer.h"

namespace flashloom {

/// Files of tokens that others have made (`.bin`): a header of 1,024 bytes, the tokens end to end,
/// and perhaps a bit for each that says whether it is to be learnt. All numbers are little-endian;
/// i32[k] is the k-th 32-bit integer of the file.
///
/// | made by  | i32[0], i32[1]      | header                                            | tokens |
/// |----------|---------------------|---------------------------------------------------|--------|
/// | llm.c    | 20240520, 1         | i32[2] tokens                                     | u16    |
/// | llm.c    | 20240801, 7         | i32[2] tokens                                     | u32    |
/// | LLMQ     | the 8 bytes         | i32[2] version, 1 or 2; i32[3] bytes a token, 4;  | i32    |
/// |          | "BIN.TOK\n"         | i32[4] tokens; version 2: i32[5] vocabulary,      |        |
/// |          |                     | i32[6] 1 if there are masks                       |        |
///
/// Masks follow the tokens, bit i % 8 of byte i / 8 for token i: 1 where token i is to be predicted
/// from those before it. Without them every token is. The file is as long as its header says, to
/// the byte.
///
/// Documents: one ends behind every end-of-sequence token (any that ends a generation of this
/// tokenizer). In a file with masks only those that bear loss end one, and zeros without loss
/// before a document are left out, since LLMQ fills examples up with them; one stays if 0 begins a
/// text.
///
/// visit(tokens, loss, begins) takes pieces of at most `longest` tokens; no piece has tokens of two
/// documents, and `begins` says whether it is the first of one. The file is read through, block
/// after block. Throws IoError naming file and place for everything that is not so, a token beyond
/// the tokenizer's vocabulary among them; InvalidArgument for `longest` below 1.
void read_token_shard(
    const std::filesystem::path& file, const Tokenizer& tokenizer, int64_t longest,
    FunctionRef<void(std::span<const int32_t> tokens, std::span<const uint8_t> loss, bool begins)>
        visit);

}  // namespace flashloom
