#include <fmt/format.h>

#include <array>
#include <charconv>

#include "flashloom/text/jinja/functions.h"
#include "flashloom/text/jinja/parser.h"
#include "flashloom/text/jinja/template_error.h"

namespace flashloom::jinja {

ExpressionPointer ExpressionParser::parse_postfix(ExpressionPointer object) {
  for (;;) {
    if (tokens_.peek().is_symbol(".")) {
      object = parse_attribute(std::move(object));
    } else if (tokens_.peek().is_symbol("[")) {
      object = parse_subscript(std::move(object));
    } else if (tokens_.peek().is_symbol("(")) {
      auto call = make(ExpressionKind::call, tokens_.peek().line);
      adopt(*call, std::move(object));
      parse_arguments(*call);
      object = std::move(call);
    } else {
      return object;
    }
  }
}

ExpressionPointer ExpressionParser::parse_attribute(ExpressionPointer object) {
  const int line = tokens_.next().line;
  const Token token = tokens_.peek();
  if (token.type == TokenType::integer) {  // items.0
    auto subscript = make(ExpressionKind::subscript, line);
    adopt(*subscript, std::move(object));
    adopt(*subscript, parse_primary());
    return subscript;
  }
  auto attribute =
      make(ExpressionKind::attribute, line, tokens_.expect_name("the name of an attribute"));
  adopt(*attribute, std::move(object));
  return attribute;
}

ExpressionPointer ExpressionParser::parse_subscript(ExpressionPointer object) {
  auto subscript = make(ExpressionKind::subscript, tokens_.next().line);
  adopt(*subscript, std::move(object));
  const auto at_border = [&] {
    return tokens_.peek().is_symbol(":") || tokens_.peek().is_symbol("]");
  };
  adopt(*subscript, at_border() ? nullptr : parse());
  while (subscript->children.size() < 4 && tokens_.skip_symbol(":")) {
    subscript->kind = ExpressionKind::slice;
    adopt(*subscript, at_border() ? nullptr : parse());
  }
  if (subscript->kind == ExpressionKind::subscript && subscript->children[1] == nullptr) {
    tokens_.fail_expected("an index");
  }
  if (tokens_.peek().is_symbol(",")) {
    tokens_.fail("an index with a comma is not supported");
  }
  tokens_.expect_symbol("]");
  return subscript;
}

ExpressionPointer ExpressionParser::parse_filters_and_tests(ExpressionPointer input) {
  for (;;) {
    if (tokens_.peek().is_symbol("|")) {
      input = parse_filter(std::move(input));
    } else if (tokens_.peek().is_name("is")) {
      input = parse_test(std::move(input));
    } else if (tokens_.peek().is_symbol("(")) {
      input = parse_postfix(std::move(input));
    } else {
      return input;
    }
  }
}

ExpressionPointer ExpressionParser::parse_filters(ExpressionPointer input) {
  while (tokens_.peek().is_symbol("|")) {
    input = parse_filter(std::move(input));
  }
  return input;
}

ExpressionPointer ExpressionParser::parse_filter(ExpressionPointer input) {
  const int line = tokens_.next().line;
  auto filter = make(ExpressionKind::filter, line, tokens_.expect_name("the name of a filter"));
  if (!is_filter(filter->text)) {
    throw TemplateError(line, fmt::format("the filter '{}' is not supported", filter->text));
  }
  adopt(*filter, std::move(input));
  if (tokens_.peek().is_symbol("(")) {
    parse_arguments(*filter);
  }
  return filter;
}

ExpressionPointer ExpressionParser::parse_test(ExpressionPointer input) {
  const int line = tokens_.next().line;
  const bool negated = tokens_.skip_name("not");
  auto test = make(ExpressionKind::test, line, tokens_.expect_name("the name of a test"));
  if (!is_test(test->text)) {
    throw TemplateError(line, fmt::format("the test '{}' is not supported", test->text));
  }
  adopt(*test, std::move(input));
  const Token token = tokens_.peek();
  if (token.is_symbol("(")) {
    parse_arguments(*test);
    if (!test->keywords.empty()) {
      throw TemplateError(line, "a test takes no keyword arguments");
    }
  } else if (token.type == TokenType::string || token.type == TokenType::integer ||
             token.type == TokenType::number || token.is_symbol("[") || token.is_symbol("{") ||
             (token.type == TokenType::name && !token.is_name("else") && !token.is_name("or") &&
              !token.is_name("and") && !token.is_name("if") && !token.is_name("not") &&
              !token.is_name("in") && !token.is_name("is"))) {
    adopt(*test, parse_postfix(parse_primary()));
  }
  if (tokens_.peek().is_name("is")) {
    tokens_.fail("a test behind a test needs brackets");
  }
  if (!negated) {
    return test;
  }
  auto negation = make(ExpressionKind::unary, line, "not");
  adopt(*negation, std::move(test));
  return negation;
}

void ExpressionParser::parse_arguments(Expression& call) {
  tokens_.expect_symbol("(");
  while (!tokens_.skip_symbol(")")) {
    if (tokens_.peek().is_symbol("*") || tokens_.peek().is_symbol("**")) {
      tokens_.fail("arguments unpacked by * are not supported");
    }
    if (tokens_.peek().type == TokenType::name && tokens_.peek(1).is_symbol("=")) {
      std::string name = tokens_.next().text;
      tokens_.next();
      ExpressionPointer value = parse();
      call.depth = std::max(call.depth, value->depth + 1);
      call.keywords.emplace_back(std::move(name), std::move(value));
    } else if (!call.keywords.empty()) {
      tokens_.fail("a positional argument behind a keyword argument");
    } else {
      adopt(call, parse());
    }
    if (!tokens_.peek().is_symbol(")")) {
      tokens_.expect_symbol(",");
    }
  }
}

}  // namespace flashloom::jinja
