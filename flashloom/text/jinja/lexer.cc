#include "flashloom/text/jinja/lexer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdint>

#include "flashloom/text/jinja/characters.h"
#include "flashloom/text/jinja/string_literal.h"
#include "flashloom/text/jinja/template_error.h"

namespace flashloom::jinja {
namespace {

std::string normalize_newlines(std::string_view source) {
  std::string out;
  out.reserve(source.size());
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      i += i + 1 < source.size() && source[i + 1] == '\n' ? 1 : 0;
    } else {
      out += source[i];
    }
  }
  if (!out.empty() && out.back() == '\n') {
    out.pop_back();
  }
  return out;
}

bool is_name_start(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
}

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

class Lexer {
 public:
  explicit Lexer(std::string source) : source_(std::move(source)) {}

  std::vector<Token> run() {
    while (at_ < source_.size()) {
      lex_text();
    }
    add(TokenType::end, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail(std::string_view what) const { throw TemplateError(line_, what); }

  bool looking_at(std::string_view text) const {
    return source_.compare(at_, text.size(), text) == 0;
  }

  void add(TokenType type, std::string text) {
    tokens_.push_back({.type = type, .text = std::move(text), .line = line_});
  }

  void advance(size_t to) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<std::ptrdiff_t>(at_),
                                         source_.begin() + static_cast<std::ptrdiff_t>(to), '\n'));
    at_ = to;
  }

  void skip_space() {
    size_t end = at_;
    while (end < source_.size() && is_space(character_at(source_, end))) {
      end += character_bytes(source_, end);
    }
    advance(end);
  }

  // The text before a tag at `tag`, with the white space taken off that the tag's sign and
  // lstrip_blocks ask for.
  std::string_view text_before(size_t tag, bool variable, char sign) const {
    std::string_view text = std::string_view(source_).substr(at_, tag - at_);
    if (sign == '-') {
      return strip(text, Ends::right);
    }
    if (sign != '+' && !variable) {
      const size_t line = text.rfind('\n') + 1;  // npos + 1 is 0
      const bool line_starting = at_ == 0 || source_[at_ - 1] == '\n';
      if ((line > 0 || line_starting) && strip(text.substr(line), Ends::left).empty()) {
        return text.substr(0, line);
      }
    }
    return text;
  }

  void add_text_before(size_t tag, bool variable) {
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    const std::string_view text = text_before(tag, variable, sign);
    if (!text.empty()) {
      add(TokenType::data, std::string(text));
    }
    advance(tag + (sign == '-' || sign == '+' ? 3 : 2));
  }

  void lex_text() {
    size_t tag = at_;
    for (tag = source_.find('{', tag); tag != std::string::npos; tag = source_.find('{', tag + 1)) {
      const char next = tag + 1 < source_.size() ? source_[tag + 1] : '\0';
      if (next == '%' || next == '{' || next == '#') {
        break;
      }
    }
    if (tag == std::string::npos) {
      add(TokenType::data, source_.substr(at_));
      advance(source_.size());
      return;
    }
    const char kind = source_[tag + 1];
    add_text_before(tag, kind == '{');
    if (kind == '#') {
      lex_comment();
    } else if (kind == '{') {
      add(TokenType::variable_begin, "");
      lex_expression("}}", TokenType::variable_end);
    } else if (!lex_raw()) {
      add(TokenType::block_begin, "");
      lex_expression("%}", TokenType::block_end);
    }
  }

  // Behind a tag's end: `-` eats all white space, trim_blocks one newline.
  void after_end(bool eat_space, bool eat_newline) {
    if (eat_space) {
      skip_space();
    } else if (eat_newline && at_ < source_.size() && source_[at_] == '\n') {
      advance(at_ + 1);
    }
  }

  void lex_comment() {
    // Closed by the first #}, which a sign may stand before: {#-#} is one comment.
    const size_t end = source_.find("#}", at_);
    if (end == std::string::npos) {
      fail("a comment that never ends");
    }
    const char sign = end > at_ ? source_[end - 1] : '\0';
    advance(end + 2);
    after_end(sign == '-', sign != '+');
  }

  // {% raw %} … {% endraw %}; false if this is another block.
  bool lex_raw() {
    size_t end = at_;
    const auto skip = [&] {
      while (end < source_.size() && is_space(static_cast<unsigned char>(source_[end]))) {
        ++end;
      }
    };
    skip();
    if (source_.compare(end, 3, "raw") != 0) {
      return false;
    }
    end += 3;
    skip();
    const bool eat_space = source_.compare(end, 3, "-%}") == 0;
    if (!eat_space && source_.compare(end, 2, "%}") != 0) {
      return false;
    }
    advance(end + (eat_space ? 3 : 2));
    after_end(eat_space, false);
    for (size_t tag = source_.find("{%", at_); tag != std::string::npos;
         tag = source_.find("{%", tag + 1)) {
      end = tag + 2;
      end += end < source_.size() && (source_[end] == '-' || source_[end] == '+') ? 1 : 0;
      skip();
      if (source_.compare(end, 6, "endraw") != 0) {
        continue;
      }
      end += 6;
      skip();
      const char sign = end < source_.size() ? source_[end] : '\0';
      end += sign == '-' || sign == '+' ? 1 : 0;
      if (source_.compare(end, 2, "%}") == 0) {
        add_text_before(tag, false);
        advance(end + 2);
        after_end(sign == '-', sign != '+');
        return true;
      }
    }
    fail("a raw block that never ends");
  }

  void lex_expression(std::string_view closing, TokenType type) {
    size_t brackets = 0;
    for (skip_space(); at_ < source_.size(); skip_space()) {
      const char sign = source_[at_];
      const bool signed_end = (sign == '-' || (sign == '+' && type == TokenType::block_end)) &&
                              source_.compare(at_ + 1, 2, closing) == 0;
      if (brackets == 0 && (signed_end || looking_at(closing))) {
        add(type, "");
        advance(at_ + (signed_end ? 3 : 2));
        after_end(signed_end && sign == '-', type == TokenType::block_end && !signed_end);
        return;
      }
      lex_token(brackets);
    }
    fail(fmt::format("a tag that is not closed by {}", closing));
  }

  void lex_token(size_t& brackets) {
    const char c = source_[at_];
    size_t end = at_ + 1;
    if (is_name_start(c)) {
      while (end < source_.size() && (is_name_start(source_[end]) || is_digit(source_[end]))) {
        ++end;
      }
      add(TokenType::name, source_.substr(at_, end - at_));
      advance(end);
    } else if (is_digit(c)) {
      lex_number();
    } else if (c == '"' || c == '\'') {
      while (end < source_.size() && source_[end] != c) {
        end += source_[end] == '\\' ? 2 : 1;
      }
      if (end >= source_.size()) {
        fail("a string that never ends");
      }
      add(TokenType::string,
          string_literal(std::string_view(source_).substr(at_ + 1, end - at_ - 1), line_));
      advance(end + 1);
    } else {
      lex_symbol(brackets);
    }
  }

  void lex_number() {
    size_t end = at_;
    const auto digits = [&] {
      while (end < source_.size() &&
             (is_digit(source_[end]) ||
              (source_[end] == '_' && end + 1 < source_.size() && is_digit(source_[end + 1])))) {
        ++end;
      }
    };
    digits();
    TokenType type = TokenType::integer;
    if (end + 1 < source_.size() && source_[end] == '.' && is_digit(source_[end + 1])) {
      type = TokenType::number;
      ++end;
      digits();
    }
    if (end < source_.size() && (source_[end] == 'e' || source_[end] == 'E')) {
      const size_t sign =
          end + 1 < source_.size() && (source_[end + 1] == '-' || source_[end + 1] == '+');
      if (end + 1 + sign < source_.size() && is_digit(source_[end + 1 + sign])) {
        type = TokenType::number;
        end += 1 + sign;
        digits();
      }
    }
    std::string text = source_.substr(at_, end - at_);
    std::erase(text, '_');
    if (type == TokenType::integer && text.size() > 1 && text[0] == '0') {
      fail(fmt::format("the number {} with leading zeros", text));
    }
    add(type, std::move(text));
    advance(end);
  }

  void lex_symbol(size_t& brackets) {
    constexpr std::array<std::string_view, 7> kPairs = {"//", "**", "==", "!=", ">=", "<=", "=="};
    constexpr std::string_view kSingles = "+-*/%~[](){}><=.:|,;";
    for (const std::string_view pair : kPairs) {
      if (looking_at(pair)) {
        add(TokenType::symbol, std::string(pair));
        advance(at_ + 2);
        return;
      }
    }
    const char c = source_[at_];
    if (kSingles.find(c) == std::string_view::npos) {
      fail(fmt::format("unexpected character '{}'",
                       source_.substr(at_, character_bytes(source_, at_))));
    }
    if (c == '(' || c == '[' || c == '{') {
      ++brackets;
    } else if (c == ')' || c == ']' || c == '}') {
      if (brackets == 0) {
        fail(fmt::format("'{}' that closes nothing", c));
      }
      --brackets;
    }
    add(TokenType::symbol, std::string(1, c));
    advance(at_ + 1);
  }

  std::string source_;
  std::vector<Token> tokens_;
  size_t at_ = 0;
  int line_ = 1;
};

}  // namespace

std::vector<Token> tokenize_template(std::string_view source) {
  if (source.size() > kMaxTemplateBytes) {
    throw TemplateError(1, fmt::format("a template of {} bytes; at most {} are read", source.size(),
                                       kMaxTemplateBytes));
  }
  return Lexer(normalize_newlines(source)).run();
}

}  // namespace flashloom::jinja
