#include "flashloom/text/jinja/evaluator.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "flashloom/text/jinja/value_text.h"

namespace flashloom::jinja {
namespace {

constexpr std::array kGlobals = std::to_array<std::string_view>(
    {"dict", "namespace", "raise_exception", "range", "strftime_now"});

}  // namespace

void Scope::set(std::string_view name, Value value) {
  for (auto& [known, stored] : variables_) {
    if (known == name) {
      stored = std::move(value);
      return;
    }
  }
  variables_.emplace_back(name, std::move(value));
}

const Value* Scope::find_here(std::string_view name) const {
  for (const auto& [known, value] : variables_) {
    if (known == name) {
      return &value;
    }
  }
  return nullptr;
}

const Value* Scope::find(std::string_view name) const {
  for (const Scope* scope = this; scope != nullptr; scope = scope->outer_) {
    if (const Value* value = scope->find_here(name)) {
      return value;
    }
  }
  return nullptr;
}

Evaluator::Evaluator(const RenderOptions& options)
    : options_(options), budget_(options.work_limit), globals_(nullptr), scope_(&globals_) {
  for (const auto& [name, value] : options.variables) {
    globals_.set(name, value);
  }
}

Evaluator::DepthGuard::DepthGuard(Evaluator& evaluator) : evaluator_(evaluator) {
  if (++evaluator_.depth_ > kMaxDepth) {
    --evaluator_.depth_;
    throw ValueError(fmt::format("calls nested more than {} deep", kMaxDepth));
  }
}

Value Evaluator::look_up(std::string_view name) const {
  if (const Value* value = scope_->find(name)) {
    return *value;
  }
  if (std::find(kGlobals.begin(), kGlobals.end(), name) != kGlobals.end()) {
    return std::make_shared<const Function>(
        Function{.name = std::string(name), .macro = nullptr, .self = nullptr});
  }
  return Value::undefined(fmt::format("'{}' is undefined", name));
}

Value Evaluator::evaluate(const Expression& expression) {
  const DepthGuard guard(*this);
  budget_.charge(1);
  line_ = expression.line;
  switch (expression.kind) {
    case ExpressionKind::constant:
      return expression.value;
    case ExpressionKind::name:
      return look_up(expression.text);
    case ExpressionKind::attribute:
      return get_attribute(evaluate(*expression.children[0]), expression.text);
    case ExpressionKind::dict:
      return evaluate_dict(expression);
    case ExpressionKind::call:
      return evaluate_call(expression);
    case ExpressionKind::filter: {
      const Value input = evaluate(*expression.children[0]);
      return apply_filter(expression.text, input, arguments(expression), budget_);
    }
    case ExpressionKind::test: {
      const Value input = evaluate(*expression.children[0]);
      return apply_test(expression.text, input, arguments(expression).positional, budget_);
    }
    case ExpressionKind::unary:
    case ExpressionKind::binary:
    case ExpressionKind::condition:
      return evaluate_logic(expression);
    case ExpressionKind::compare:
      return evaluate_comparison(expression);
    case ExpressionKind::concatenate:
      return concatenate(expression);
    default:
      return evaluate_children(expression);
  }
}

Value Evaluator::evaluate_children(const Expression& expression) {
  std::vector<Value> values;
  values.reserve(expression.children.size());
  for (const auto& child : expression.children) {
    values.push_back(child == nullptr ? Value(None()) : evaluate(*child));
  }
  if (expression.kind == ExpressionKind::subscript) {
    return get_item(values[0], values[1], budget_);
  }
  if (expression.kind == ExpressionKind::slice) {
    values.resize(4, Value(None()));
    return get_slice(values[0], values[1], values[2], values[3], budget_);
  }
  return Value::list(std::move(values), expression.kind == ExpressionKind::tuple);
}

Value Evaluator::evaluate_logic(const Expression& expression) {
  if (expression.kind == ExpressionKind::condition) {
    if (evaluate(*expression.children[1]).truth()) {
      return evaluate(*expression.children[0]);
    }
    return expression.children[2] == nullptr
               ? Value::undefined("an inline `if` without `else` gave nothing")
               : evaluate(*expression.children[2]);
  }
  Value left = evaluate(*expression.children[0]);
  if (expression.kind == ExpressionKind::unary) {
    return expression.text == "not" ? Value(!left.truth())
                                    : apply_operator(expression.text, left, nullptr, budget_);
  }
  if (expression.text == "and" || expression.text == "or") {
    return left.truth() == (expression.text == "or") ? left : evaluate(*expression.children[1]);
  }
  const Value right = evaluate(*expression.children[1]);
  return apply_operator(expression.text, left, &right, budget_);
}

Value Evaluator::evaluate_comparison(const Expression& expression) {
  Value left = evaluate(*expression.children[0]);
  for (size_t i = 0; i < expression.operators.size(); ++i) {
    Value right = evaluate(*expression.children[i + 1]);
    const std::string& name = expression.operators[i];
    const bool holds = name == "not in" ? !contains(right, left, budget_)
                                        : apply_test(name, left, {&right, 1}, budget_);
    if (!holds) {
      return false;
    }
    left = std::move(right);
  }
  return true;
}

Value Evaluator::evaluate_dict(const Expression& expression) {
  std::vector<std::pair<std::string, Value>> items;
  for (size_t i = 0; i < expression.children.size(); i += 2) {
    const Value key = evaluate(*expression.children[i]);
    if (key.string() == nullptr) {
      throw ValueError(fmt::format("a dict's key must be a string here, got {}", key.type_name()));
    }
    items.emplace_back(*key.string(), evaluate(*expression.children[i + 1]));
  }
  return Value::dict(std::move(items));
}

Value Evaluator::concatenate(const Expression& expression) {
  std::string text;
  for (const auto& child : expression.children) {
    text += to_text(evaluate(*child), budget_);
    budget_.charge_text(text.size());
  }
  return Value(std::move(text));
}

Arguments Evaluator::arguments(const Expression& expression) {
  Arguments values;
  for (size_t i = 1; i < expression.children.size(); ++i) {
    values.positional.push_back(evaluate(*expression.children[i]));
  }
  for (const auto& [name, value] : expression.keywords) {
    values.keywords.emplace_back(name, evaluate(*value));
  }
  return values;
}

Value Evaluator::apply_filters(const Expression& expression, const Value& input) {
  const DepthGuard guard(*this);
  const Value inner =
      expression.children[0] == nullptr ? input : apply_filters(*expression.children[0], input);
  return apply_filter(expression.text, inner, arguments(expression), budget_);
}

Value Evaluator::evaluate_call(const Expression& expression) {
  const Value callee = evaluate(*expression.children[0]);
  const Arguments values = arguments(expression);
  line_ = expression.line;
  require_defined(callee);
  const Function* function = callee.function();
  if (function == nullptr) {
    throw ValueError(fmt::format("a {} cannot be called", callee.type_name()));
  }
  if (function->macro != nullptr) {
    return call_macro(*function->macro, values);
  }
  return function->self != nullptr ? call_method(*function->self, function->name, values, budget_)
                                   : call_global(function->name, values);
}

}  // namespace flashloom::jinja
