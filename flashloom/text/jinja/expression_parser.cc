#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>

#include "flashloom/text/jinja/parser.h"
#include "flashloom/text/jinja/template_error.h"

namespace flashloom::jinja {

ExpressionPointer ExpressionParser::make(ExpressionKind kind, int line, std::string text) {
  auto expression = std::make_unique<Expression>();
  expression->kind = kind;
  expression->line = line;
  expression->text = std::move(text);
  return expression;
}

void ExpressionParser::adopt(Expression& parent, ExpressionPointer child) {
  if (child != nullptr) {
    parent.depth = std::max(parent.depth, child->depth + 1);
    if (parent.depth > kMaxExpressionDepth) {
      throw TemplateError(
          child->line, fmt::format("an expression nested more than {} deep", kMaxExpressionDepth));
    }
  }
  parent.children.push_back(std::move(child));
}

ExpressionPointer ExpressionParser::binary(std::string_view text, int line, ExpressionPointer left,
                                           ExpressionPointer right) {
  auto expression = make(ExpressionKind::binary, line, std::string(text));
  adopt(*expression, std::move(left));
  adopt(*expression, std::move(right));
  return expression;
}

ExpressionPointer ExpressionParser::parse(bool with_condition) {
  if (++nesting_ > kMaxExpressionDepth) {
    tokens_.fail(fmt::format("an expression nested more than {} deep", kMaxExpressionDepth));
  }
  ExpressionPointer expression = parse_or();
  while (with_condition && tokens_.peek().is_name("if")) {
    auto condition = make(ExpressionKind::condition, tokens_.next().line);
    adopt(*condition, std::move(expression));
    adopt(*condition, parse_or());
    adopt(*condition, tokens_.skip_name("else") ? parse() : nullptr);
    expression = std::move(condition);
  }
  --nesting_;
  return expression;
}

ExpressionPointer ExpressionParser::parse_tuple() {
  const int line = tokens_.peek().line;
  ExpressionPointer first = parse();
  if (!tokens_.peek().is_symbol(",")) {
    return first;
  }
  auto tuple = make(ExpressionKind::tuple, line);
  adopt(*tuple, std::move(first));
  while (tokens_.skip_symbol(",")) {
    const Token& token = tokens_.peek();
    if (token.type == TokenType::variable_end || token.type == TokenType::block_end ||
        token.is_symbol(")")) {
      break;
    }
    adopt(*tuple, parse());
  }
  return tuple;
}

ExpressionPointer ExpressionParser::parse_or() {
  ExpressionPointer left = parse_and();
  while (tokens_.peek().is_name("or")) {
    const int line = tokens_.next().line;
    left = binary("or", line, std::move(left), parse_and());
  }
  return left;
}

ExpressionPointer ExpressionParser::parse_and() {
  ExpressionPointer left = parse_not();
  while (tokens_.peek().is_name("and")) {
    const int line = tokens_.next().line;
    left = binary("and", line, std::move(left), parse_not());
  }
  return left;
}

ExpressionPointer ExpressionParser::parse_not() {
  std::vector<int> lines;  // a loop, so that many `not` cannot recurse
  while (tokens_.peek().is_name("not")) {
    lines.push_back(tokens_.next().line);
  }
  ExpressionPointer operand = parse_compare();
  for (const int line : lines) {
    auto negation = make(ExpressionKind::unary, line, "not");
    adopt(*negation, std::move(operand));
    operand = std::move(negation);
  }
  return operand;
}

ExpressionPointer ExpressionParser::parse_compare() {
  constexpr std::array<std::string_view, 6> kOperators = {"==", "!=", "<", "<=", ">", ">="};
  ExpressionPointer first = parse_sum();
  ExpressionPointer chain;
  for (;;) {
    const Token token = tokens_.peek();
    std::string name;
    if (token.type == TokenType::symbol &&
        std::find(kOperators.begin(), kOperators.end(), token.text) != kOperators.end()) {
      name = tokens_.next().text;
    } else if (tokens_.skip_name("in")) {
      name = "in";
    } else if (token.is_name("not") && tokens_.peek(1).is_name("in")) {
      tokens_.next();
      tokens_.next();
      name = "not in";
    } else {
      return chain == nullptr ? std::move(first) : std::move(chain);
    }
    if (chain == nullptr) {
      chain = make(ExpressionKind::compare, token.line);
      adopt(*chain, std::move(first));
    }
    chain->operators.push_back(std::move(name));
    adopt(*chain, parse_sum());
  }
}

ExpressionPointer ExpressionParser::parse_sum() {
  ExpressionPointer left = parse_concatenate();
  while (tokens_.peek().is_symbol("+") || tokens_.peek().is_symbol("-")) {
    const Token token = tokens_.next();
    left = binary(token.text, token.line, std::move(left), parse_concatenate());
  }
  return left;
}

ExpressionPointer ExpressionParser::parse_concatenate() {
  ExpressionPointer first = parse_product();
  if (!tokens_.peek().is_symbol("~")) {
    return first;
  }
  auto all = make(ExpressionKind::concatenate, tokens_.peek().line);
  adopt(*all, std::move(first));
  while (tokens_.skip_symbol("~")) {
    adopt(*all, parse_product());
  }
  return all;
}

ExpressionPointer ExpressionParser::parse_product() {
  ExpressionPointer left = parse_power();
  for (const Token* token = &tokens_.peek(); token->is_symbol("*") || token->is_symbol("/") ||
                                             token->is_symbol("//") || token->is_symbol("%");
       token = &tokens_.peek()) {
    const Token taken = tokens_.next();
    left = binary(taken.text, taken.line, std::move(left), parse_power());
  }
  return left;
}

ExpressionPointer ExpressionParser::parse_power() {
  ExpressionPointer left = parse_unary(true);
  while (tokens_.peek().is_symbol("**")) {
    const int line = tokens_.next().line;
    left = binary("**", line, std::move(left), parse_unary(true));
  }
  return left;
}

ExpressionPointer ExpressionParser::parse_unary(bool with_filters) {
  std::vector<Token> signs;
  while (tokens_.peek().is_symbol("-") || tokens_.peek().is_symbol("+")) {
    signs.push_back(tokens_.next());
  }
  ExpressionPointer operand = parse_postfix(parse_primary());
  std::reverse(signs.begin(), signs.end());
  for (const Token& sign : signs) {
    auto unary = make(ExpressionKind::unary, sign.line, sign.text);
    adopt(*unary, std::move(operand));
    operand = std::move(unary);
  }
  return with_filters ? parse_filters_and_tests(std::move(operand)) : std::move(operand);
}

ExpressionPointer ExpressionParser::parse_primary() {
  const Token token = tokens_.peek();
  auto constant = make(ExpressionKind::constant, token.line);
  if (token.type == TokenType::string) {
    std::string text;
    while (tokens_.peek().type == TokenType::string) {
      text += tokens_.next().text;
    }
    constant->value = Value(std::move(text));
    return constant;
  }
  if (token.type == TokenType::integer) {
    int64_t value = 0;
    const char* last = token.text.data() + token.text.size();
    if (std::from_chars(token.text.data(), last, value).ec != std::errc()) {
      tokens_.fail(fmt::format("the number {} does not fit 64 bits", token.text));
    }
    tokens_.next();
    constant->value = Value(value);
    return constant;
  }
  if (token.type == TokenType::number) {
    double value = 0;
    const char* last = token.text.data() + token.text.size();
    if (std::from_chars(token.text.data(), last, value).ec != std::errc()) {
      tokens_.fail(fmt::format("the number {} is out of range", token.text));
    }
    tokens_.next();
    constant->value = Value(value);
    return constant;
  }
  if (token.type == TokenType::name) {
    tokens_.next();
    if (token.text == "true" || token.text == "True") {
      constant->value = Value(true);
    } else if (token.text == "false" || token.text == "False") {
      constant->value = Value(false);
    } else if (token.text == "none" || token.text == "None") {
      constant->value = Value(None());
    } else {
      constant->kind = ExpressionKind::name;
      constant->text = token.text;
    }
    return constant;
  }
  return parse_brackets();
}

ExpressionPointer ExpressionParser::parse_brackets() {
  const Token token = tokens_.peek();
  if (tokens_.skip_symbol("(")) {
    if (tokens_.skip_symbol(")")) {
      return make(ExpressionKind::tuple, token.line);
    }
    ExpressionPointer inside = parse_tuple();
    tokens_.expect_symbol(")");
    return inside;
  }
  if (tokens_.skip_symbol("[")) {
    auto list = make(ExpressionKind::list, token.line);
    while (!tokens_.skip_symbol("]")) {
      adopt(*list, parse());
      if (!tokens_.peek().is_symbol("]")) {
        tokens_.expect_symbol(",");
      }
    }
    return list;
  }
  if (token.is_symbol("{")) {
    return parse_dict();
  }
  tokens_.fail_expected("an expression");
}

ExpressionPointer ExpressionParser::parse_dict() {
  auto dict = make(ExpressionKind::dict, tokens_.next().line);
  while (!tokens_.skip_symbol("}")) {
    adopt(*dict, parse());
    tokens_.expect_symbol(":");
    adopt(*dict, parse());
    if (!tokens_.peek().is_symbol("}")) {
      tokens_.expect_symbol(",");
    }
  }
  return dict;
}

}  // namespace flashloom::jinja
