#pragma once

#include <string_view>
#include <vector>

#include "flashloom/text/jinja/lexer.h"
#include "flashloom/text/jinja/syntax.h"

namespace flashloom::jinja {

/// Tokens with a place among them; what both parsers share.
class TokenStream {
 public:
  explicit TokenStream(std::vector<Token> tokens) : tokens_(std::move(tokens)) {}

  const Token& peek(size_t ahead = 0) const;
  const Token& next();
  bool skip_symbol(std::string_view symbol);
  bool skip_name(std::string_view name);
  void expect_symbol(std::string_view symbol);
  void expect(TokenType type, std::string_view what);
  std::string expect_name(std::string_view what);
  /// Throws TemplateError at the present token: "expected X, got Y".
  [[noreturn]] void fail_expected(std::string_view what) const;
  [[noreturn]] void fail(std::string_view what) const;

 private:
  std::vector<Token> tokens_;
  size_t at_ = 0;
};

/// Expressions nested deeper are refused: parsing, evaluating and freeing them recurse.
inline constexpr int kMaxExpressionDepth = 100;
/// Statements nested deeper are refused, for the same reason.
inline constexpr int kMaxStatementDepth = 64;

class ExpressionParser {
 public:
  explicit ExpressionParser(TokenStream& tokens) : tokens_(tokens) {}

  /// An expression without commas outside brackets; `with_condition` reads `a if b else c`.
  ExpressionPointer parse(bool with_condition = true);
  /// What `{{ }}` and `set` hold: an expression, or several with commas, which make a tuple.
  ExpressionPointer parse_tuple();
  /// The filters of `{% set x | upper | trim %}`, around a null input.
  ExpressionPointer parse_filters(ExpressionPointer input);

 private:
  ExpressionPointer make(ExpressionKind kind, int line, std::string text = "");
  void adopt(Expression& parent, ExpressionPointer child);
  ExpressionPointer binary(std::string_view text, int line, ExpressionPointer left,
                           ExpressionPointer right);

  ExpressionPointer parse_or();
  ExpressionPointer parse_and();
  ExpressionPointer parse_not();
  ExpressionPointer parse_compare();
  ExpressionPointer parse_sum();
  ExpressionPointer parse_concatenate();
  ExpressionPointer parse_product();
  ExpressionPointer parse_power();
  ExpressionPointer parse_unary(bool with_filters);
  ExpressionPointer parse_primary();
  ExpressionPointer parse_brackets();
  ExpressionPointer parse_dict();
  ExpressionPointer parse_postfix(ExpressionPointer object);
  ExpressionPointer parse_subscript(ExpressionPointer object);
  ExpressionPointer parse_attribute(ExpressionPointer object);
  ExpressionPointer parse_filters_and_tests(ExpressionPointer input);
  ExpressionPointer parse_filter(ExpressionPointer input);
  ExpressionPointer parse_test(ExpressionPointer input);
  void parse_arguments(Expression& call);

  TokenStream& tokens_;
  int nesting_ = 0;
};

/// Parses a whole template. Throws TemplateError with the line, naming what is not understood.
Body parse_template(std::string_view source);

}  // namespace flashloom::jinja
