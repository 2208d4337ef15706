#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace flashloom::jinja {

enum class TokenType {
  data,            // text between tags, after white space control
  block_begin,     // {%
  block_end,       // %}
  variable_begin,  // {{
  variable_end,    // }}
  name,
  string,  // its value, escapes resolved
  integer,
  number,
  symbol,  // an operator or a bracket
  end,
};

struct Token {
  TokenType type = TokenType::end;
  std::string text;
  int line = 1;

  bool is_symbol(std::string_view symbol) const {
    return type == TokenType::symbol && text == symbol;
  }

  bool is_name(std::string_view name) const { return type == TokenType::name && text == name; }
};

/// Templates larger than this are refused; the largest published chat templates have 30 kB.
inline constexpr size_t kMaxTemplateBytes = size_t{1} << 20;

/// Cuts a template into tokens as Jinja2 does with trim_blocks and lstrip_blocks on and
/// keep_trailing_newline off. Comments and raw blocks are resolved here. Throws TemplateError.
std::vector<Token> tokenize_template(std::string_view source);

}  // namespace flashloom::jinja
