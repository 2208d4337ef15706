#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "flashloom/text/jinja/value.h"

/// The syntax tree of a template.
namespace flashloom::jinja {

/// Each kind says what `children` hold; optional ones may be null.
enum class ExpressionKind {
  constant,     // value
  name,         // text
  list,         // items
  tuple,        // items
  dict,         // key, value, key, value, …
  attribute,    // object; text is the attribute
  subscript,    // object, index
  slice,        // object, optional start, stop, step
  call,         // callee, arguments…; keywords
  filter,       // input (null in a set block), arguments…; text; keywords
  test,         // input, arguments…; text
  unary,        // operand; text is "-", "+" or "not"
  binary,       // left, right; text is "+", "-", "*", "/", "//", "%", "**", "and" or "or"
  concatenate,  // operands of ~
  compare,      // operands; operators[i] stands between i and i + 1
  condition,    // value, test, optional else
};

struct Expression;
using ExpressionPointer = std::unique_ptr<Expression>;

struct Expression {
  ExpressionKind kind = ExpressionKind::constant;
  int line = 1;
  int depth = 1;
  std::string text;
  Value value;
  std::vector<ExpressionPointer> children;
  std::vector<std::pair<std::string, ExpressionPointer>> keywords;
  std::vector<std::string> operators;
};

enum class StatementKind {
  text,          // text
  print,         // expression
  condition,     // branches; a branch without condition is `else`
  loop,          // names, expression (what to visit), condition (optional); body, otherwise
  assign,        // names and expression, or text "namespace" and names {namespace, attribute}
  assign_block,  // names[0]; body; expression is the chain of filters, or null
  macro,         // text is its name; names are parameters, defaults; body
  generation,    // body
  break_loop,
  continue_loop,
};

struct Statement;
using Body = std::vector<std::unique_ptr<Statement>>;

struct Branch {
  ExpressionPointer condition;
  Body body;
};

struct Statement {
  StatementKind kind = StatementKind::text;
  int line = 1;
  std::string text;
  std::vector<std::string> names;
  ExpressionPointer expression;
  ExpressionPointer condition;
  std::vector<ExpressionPointer> defaults;  // of the last parameters
  std::vector<Branch> branches;
  Body body;
  Body otherwise;
};

}  // namespace flashloom::jinja
