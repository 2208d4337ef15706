#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

/// Python's `str` methods over UTF-8. A byte that begins no valid character counts as a character.
namespace flashloom::jinja {

/// Bytes of the character that begins at `at`.
size_t character_bytes(std::string_view text, size_t at);
size_t count_characters(std::string_view text);
/// The code point that begins at `at`; the byte itself where the text is no UTF-8.
char32_t character_at(std::string_view text, size_t at);

/// str.isspace of one character.
bool is_space(char32_t character);
/// Characters that Python's repr() shows as they are.
bool is_printable(char32_t character);

enum class Ends { left, right, both };

/// str.strip, lstrip, rstrip; without `characters`, of white space.
std::string_view strip(std::string_view text, Ends ends,
                       std::optional<std::string_view> characters = {});

/// str.split with a separator (not empty), or by white space; `most` splits, all if negative.
std::vector<std::string_view> split(std::string_view text, std::string_view separator,
                                    int64_t most);
std::vector<std::string_view> split_space(std::string_view text, int64_t most);
/// str.rsplit with a separator.
std::vector<std::string_view> split_right(std::string_view text, std::string_view separator,
                                          int64_t most);
std::vector<std::string_view> split_lines(std::string_view text, bool keep_ends);

/// str.replace; `most` replacements, all if negative.
std::string replace(std::string_view text, std::string_view from, std::string_view to,
                    int64_t most);

/// Simple case mappings of single characters, and ß to SS (Python also maps some rare characters to
/// several, and a final sigma by its place).
std::string to_lower(std::string_view text);
std::string to_upper(std::string_view text);
std::string capitalize(std::string_view text);
/// str.title: upper case behind anything that is no letter.
std::string title(std::string_view text);

/// Python's slice arithmetic: the indices that [start:stop:step] visits in a sequence of `length`.
/// step is not 0.
std::vector<size_t> slice_indices(int64_t length, std::optional<int64_t> start,
                                  std::optional<int64_t> stop, int64_t step);
/// The characters at `indices` of a text.
std::string pick_characters(std::string_view text, const std::vector<size_t>& indices);

}  // namespace flashloom::jinja
