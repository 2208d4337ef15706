#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "flashloom/text/jinja/value.h"

namespace flashloom {

enum class DataRowKind {
  messages,           ///< a conversation for the chat template
  prompt_completion,  ///< raw texts, no template; loss on the completion
  text,               ///< raw text; loss throughout
  document,           ///< a plain text file: as text, but cut into pieces instead of cut off
};

/// One row of a data set, whatever its format was.
struct DataRow {
  DataRowKind kind = DataRowKind::text;
  jinja::Value messages = {};  ///< list of dicts, each with a string `role`; the template reads it
  jinja::Value tools = {};     ///< list of function schemas, or undefined
  std::string prompt = {};
  std::string completion = {};
  std::string text = {};
  std::string file = {};  ///< for errors
  int64_t line = 0;       ///< from 1
  int64_t bytes = 0;      ///< that the row takes in the file
  uint64_t hash = 0;      ///< of the row's bytes as the file has them, blanks around them apart
  /// A plain text file of many megabytes comes in several rows: whether this is its first, its
  /// last.
  bool begins = true, ends = true;
};

class JsonParser;

/// A JSON object as a row. The fields decide:
/// - `messages` (and `tools`): as they are;
/// - `conversations` (ShareGPT; each with `from` and `value`): messages, with human → user,
///   gpt → assistant, function_call → assistant, observation and function_response → tool;
/// - `prompt` and `completion`: raw texts, even for a model with a chat template, as TRL does;
/// - `instruction`, `output` and perhaps `input` (Alpaca): prompt and completion, the prompt being
///   the text that Stanford Alpaca put around them (`alpaca_prompt`). A `text` field beside them,
///   as the published data set has it, is the same row once more and is ignored;
/// - `text`.
/// Other fields are ignored. Throws Error for fields of two formats, of none, or of wrong types.
DataRow parse_data_row(std::string_view json);

/// The same with a parser that is used again; JsonParser::kPadding bytes behind `json` are
/// readable.
DataRow parse_data_row(std::string_view json, JsonParser& parser);

/// Taori et al. 2023, "Stanford Alpaca": the prompts with and without input.
std::string alpaca_prompt(std::string_view instruction, std::string_view input);

}  // namespace flashloom
