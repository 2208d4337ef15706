#include "flashloom/text/jinja/parser.h"

#include <fmt/format.h>

#include <algorithm>
#include <initializer_list>

#include "flashloom/text/jinja/template_error.h"

namespace flashloom::jinja {
namespace {

std::string describe(const Token& token) {
  switch (token.type) {
    case TokenType::data:
      return "text";
    case TokenType::block_begin:
      return "'{%'";
    case TokenType::block_end:
      return "'%}'";
    case TokenType::variable_begin:
      return "'{{'";
    case TokenType::variable_end:
      return "'}}'";
    case TokenType::string:
      return "a string";
    case TokenType::end:
      return "the end of the template";
    default:
      return fmt::format("'{}'", token.text);
  }
}

class StatementParser {
 public:
  explicit StatementParser(TokenStream& tokens) : tokens_(tokens), expressions_(tokens) {}

  // Statements up to a block whose name is in `ends` (left unread), or up to the end.
  Body parse_body(std::initializer_list<std::string_view> ends) {
    if (++nesting_ > kMaxStatementDepth) {
      tokens_.fail(fmt::format("statements nested more than {} deep", kMaxStatementDepth));
    }
    Body body;
    for (;;) {
      const Token token = tokens_.peek();
      if (token.type == TokenType::end) {
        if (ends.size() != 0) {
          tokens_.fail_expected(fmt::format("{{% {} %}}", *(ends.end() - 1)));
        }
        break;
      }
      if (token.type == TokenType::block_begin &&
          std::find(ends.begin(), ends.end(), tokens_.peek(1).text) != ends.end()) {
        break;
      }
      body.push_back(parse_statement());
    }
    --nesting_;
    return body;
  }

 private:
  std::unique_ptr<Statement> make(StatementKind kind, int line) {
    auto statement = std::make_unique<Statement>();
    statement->kind = kind;
    statement->line = line;
    return statement;
  }

  // Reads "{% name"; the caller has looked at it.
  std::string begin_block() {
    tokens_.next();
    return tokens_.expect_name("the name of a statement");
  }

  void end_block() { tokens_.expect(TokenType::block_end, "'%}'"); }

  void end_named_block() {
    begin_block();
    end_block();
  }

  std::unique_ptr<Statement> parse_statement() {
    const Token token = tokens_.peek();
    if (token.type == TokenType::data) {
      auto text = make(StatementKind::text, token.line);
      text->text = tokens_.next().text;
      return text;
    }
    if (token.type == TokenType::variable_begin) {
      tokens_.next();
      auto print = make(StatementKind::print, token.line);
      print->expression = expressions_.parse_tuple();
      tokens_.expect(TokenType::variable_end, "'}}'");
      return print;
    }
    const std::string name = begin_block();
    if (name == "if") {
      return parse_if(token.line);
    }
    if (name == "for") {
      return parse_for(token.line);
    }
    if (name == "set") {
      return parse_set(token.line);
    }
    if (name == "macro") {
      return parse_macro(token.line);
    }
    if (name == "generation") {
      auto generation = make(StatementKind::generation, token.line);
      end_block();
      generation->body = parse_body({"endgeneration"});
      end_named_block();
      return generation;
    }
    if (name == "break" || name == "continue") {
      if (loops_ == 0) {
        throw TemplateError(token.line, fmt::format("'{}' outside a loop", name));
      }
      end_block();
      return make(name == "break" ? StatementKind::break_loop : StatementKind::continue_loop,
                  token.line);
    }
    throw TemplateError(token.line, fmt::format("the statement '{}' is not supported", name));
  }

  std::unique_ptr<Statement> parse_if(int line) {
    auto statement = make(StatementKind::condition, line);
    std::string name = "if";
    while (name != "endif") {
      Branch branch;
      if (name != "else") {
        branch.condition = expressions_.parse_tuple();
      }
      end_block();
      branch.body = name == "else" ? parse_body({"endif"}) : parse_body({"elif", "else", "endif"});
      statement->branches.push_back(std::move(branch));
      name = begin_block();
    }
    end_block();
    return statement;
  }

  std::vector<std::string> parse_names() {
    std::vector<std::string> names;
    const bool brackets = tokens_.skip_symbol("(");
    do {
      names.push_back(tokens_.expect_name("a variable"));
    } while (tokens_.skip_symbol(","));
    if (brackets) {
      tokens_.expect_symbol(")");
    }
    return names;
  }

  std::unique_ptr<Statement> parse_for(int line) {
    auto loop = make(StatementKind::loop, line);
    loop->names = parse_names();
    if (std::find(loop->names.begin(), loop->names.end(), "loop") != loop->names.end()) {
      throw TemplateError(line, "a loop variable cannot be called 'loop'");
    }
    if (!tokens_.skip_name("in")) {
      tokens_.fail_expected("'in'");
    }
    loop->expression = expressions_.parse(false);
    if (tokens_.skip_name("if")) {
      loop->condition = expressions_.parse();
    }
    if (tokens_.peek().is_name("recursive")) {
      throw TemplateError(line, "a recursive loop is not supported");
    }
    end_block();
    ++loops_;
    loop->body = parse_body({"else", "endfor"});
    --loops_;
    if (begin_block() == "else") {
      end_block();
      loop->otherwise = parse_body({"endfor"});
      begin_block();
    }
    end_block();
    return loop;
  }

  std::unique_ptr<Statement> parse_set(int line) {
    auto assign = make(StatementKind::assign, line);
    assign->names = parse_names();
    if (assign->names.size() == 1 && tokens_.skip_symbol(".")) {
      assign->names.push_back(tokens_.expect_name("an attribute"));
      assign->text = "namespace";
    }
    if (tokens_.skip_symbol("=")) {
      assign->expression = expressions_.parse_tuple();
      end_block();
      return assign;
    }
    if (assign->names.size() != 1) {
      tokens_.fail_expected("'='");
    }
    assign->kind = StatementKind::assign_block;
    assign->expression = expressions_.parse_filters(nullptr);
    end_block();
    assign->body = parse_body({"endset"});
    end_named_block();
    return assign;
  }

  std::unique_ptr<Statement> parse_macro(int line) {
    if (loops_ > 0 || inside_macro_) {
      throw TemplateError(line, "a macro inside a loop or another macro is not supported");
    }
    auto macro = make(StatementKind::macro, line);
    macro->text = tokens_.expect_name("the name of a macro");
    tokens_.expect_symbol("(");
    while (!tokens_.skip_symbol(")")) {
      macro->names.push_back(tokens_.expect_name("a parameter"));
      if (tokens_.skip_symbol("=")) {
        macro->defaults.push_back(expressions_.parse());
      } else if (!macro->defaults.empty()) {
        tokens_.fail("a parameter without default behind one with it");
      }
      if (!tokens_.peek().is_symbol(")")) {
        tokens_.expect_symbol(",");
      }
    }
    end_block();
    inside_macro_ = true;
    macro->body = parse_body({"endmacro"});
    inside_macro_ = false;
    end_named_block();
    return macro;
  }

  TokenStream& tokens_;
  ExpressionParser expressions_;
  int nesting_ = 0;
  int loops_ = 0;
  bool inside_macro_ = false;
};

}  // namespace

const Token& TokenStream::peek(size_t ahead) const {
  return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
}

const Token& TokenStream::next() {
  const Token& token = tokens_[at_];
  at_ = std::min(at_ + 1, tokens_.size() - 1);
  return token;
}

bool TokenStream::skip_symbol(std::string_view symbol) {
  const bool found = peek().is_symbol(symbol);
  if (found) {
    next();
  }
  return found;
}

bool TokenStream::skip_name(std::string_view name) {
  const bool found = peek().is_name(name);
  if (found) {
    next();
  }
  return found;
}

void TokenStream::expect_symbol(std::string_view symbol) {
  if (!skip_symbol(symbol)) {
    fail_expected(fmt::format("'{}'", symbol));
  }
}

void TokenStream::expect(TokenType type, std::string_view what) {
  if (peek().type != type) {
    fail_expected(what);
  }
  next();
}

std::string TokenStream::expect_name(std::string_view what) {
  if (peek().type != TokenType::name) {
    fail_expected(what);
  }
  return next().text;
}

void TokenStream::fail_expected(std::string_view what) const {
  fail(fmt::format("expected {}, got {}", what, describe(peek())));
}

void TokenStream::fail(std::string_view what) const {
  throw TemplateError(peek().line, what);
}

Body parse_template(std::string_view source) {
  TokenStream tokens(tokenize_template(source));
  return StatementParser(tokens).parse_body({});
}

}  // namespace flashloom::jinja
