#include "flashloom/text/jinja/interpreter.h"

#include <fmt/format.h>

#include "flashloom/text/jinja/evaluator.h"
#include "flashloom/text/jinja/value_text.h"

namespace flashloom::jinja {
namespace {

// What a pass of a loop costs: a scope and its variables.
constexpr int64_t kPassUnits = 8;

// Runs `body` writing to `out`, in a scope of its own.
class OutputTo {
 public:
  OutputTo(std::string*& target, std::string& out) : target_(target), saved_(target) {
    target_ = &out;
  }

  ~OutputTo() { target_ = saved_; }

  OutputTo(const OutputTo&) = delete;
  OutputTo& operator=(const OutputTo&) = delete;

 private:
  std::string*& target_;
  std::string* saved_;
};

}  // namespace

Evaluator::Flow Evaluator::run(const Body& body) {
  const DepthGuard guard(*this);
  for (const auto& statement : body) {
    line_ = statement->line;
    budget_.charge(1);
    const Flow flow = run(*statement);
    if (flow != Flow::normal) {
      return flow;
    }
  }
  return Flow::normal;
}

Evaluator::Flow Evaluator::run_scoped(const Body& body) {
  Scope scope(scope_);
  const ScopeGuard guard(*this, scope);
  return run(body);
}

Evaluator::Flow Evaluator::run(const Statement& statement) {
  switch (statement.kind) {
    case StatementKind::text:
      write(statement.text);
      return Flow::normal;
    case StatementKind::print:
      write(to_text(evaluate(*statement.expression), budget_));
      return Flow::normal;
    case StatementKind::condition:
      for (const Branch& branch : statement.branches) {
        if (branch.condition == nullptr || evaluate(*branch.condition).truth()) {
          return run(branch.body);
        }
      }
      return Flow::normal;
    case StatementKind::loop:
      return run_loop(statement);
    case StatementKind::assign:
      assign(statement);
      return Flow::normal;
    case StatementKind::assign_block:
      assign_block(statement);
      return Flow::normal;
    case StatementKind::macro:
      scope_->set(statement.text, std::make_shared<const Function>(Function{
                                      .name = statement.text, .macro = &statement, .self = {}}));
      return Flow::normal;
    case StatementKind::generation:
      return run_scoped(statement.body);
    case StatementKind::break_loop:
      return Flow::break_loop;
    case StatementKind::continue_loop:
      return Flow::continue_loop;
  }
  return Flow::normal;
}

void Evaluator::write(std::string_view text) {
  budget_.charge_text(text.size());
  *out_ += text;
}

void Evaluator::bind(const std::vector<std::string>& names, const Value& value) {
  if (names.size() == 1) {
    scope_->set(names[0], value);
    return;
  }
  const std::vector<Value> items = iterate(value, budget_);
  if (items.size() != names.size()) {
    throw ValueError(
        fmt::format("expected {} values to unpack, got {}", names.size(), items.size()));
  }
  for (size_t i = 0; i < names.size(); ++i) {
    scope_->set(names[i], items[i]);
  }
}

Evaluator::Flow Evaluator::run_loop(const Statement& statement) {
  std::vector<Value> items = iterate(evaluate(*statement.expression), budget_);
  if (statement.condition != nullptr) {
    std::vector<Value> kept;
    for (Value& item : items) {
      Scope scope(scope_);
      const ScopeGuard guard(*this, scope);
      bind(statement.names, item);
      if (evaluate(*statement.condition).truth()) {
        kept.push_back(std::move(item));
      }
    }
    items = std::move(kept);
  }
  if (items.empty()) {
    return run_scoped(statement.otherwise);
  }
  const auto list = std::make_shared<const List>(List{.items = std::move(items)});
  for (size_t i = 0; i < list->items.size(); ++i) {
    budget_.charge(kPassUnits);
    Scope scope(scope_);
    const ScopeGuard guard(*this, scope);
    scope.set("loop",
              std::make_shared<const Loop>(Loop{.list = list, .index = static_cast<int64_t>(i)}));
    bind(statement.names, list->items[i]);
    const Flow flow = run(statement.body);
    if (flow == Flow::break_loop) {
      break;
    }
  }
  return Flow::normal;
}

void Evaluator::assign(const Statement& statement) {
  Value value = evaluate(*statement.expression);
  if (statement.text.empty()) {
    bind(statement.names, value);
    return;
  }
  Namespace* space = look_up(statement.names[0]).name_space();
  if (space == nullptr) {
    throw ValueError(
        fmt::format("'{}' is no namespace, so its attributes cannot be set", statement.names[0]));
  }
  set_attribute(*space, statement.names[1], std::move(value));
}

void Evaluator::assign_block(const Statement& statement) {
  std::string text;
  {
    const OutputTo redirect(out_, text);
    run_scoped(statement.body);
  }
  Value value(std::move(text));
  if (statement.expression != nullptr) {
    value = apply_filters(*statement.expression, value);
  }
  scope_->set(statement.names[0], std::move(value));
}

Value Evaluator::call_macro(const Statement& macro, const Arguments& arguments) {
  if (arguments.positional.size() > macro.names.size()) {
    throw ValueError(fmt::format("macro '{}': expected at most {} arguments, got {}", macro.text,
                                 macro.names.size(), arguments.positional.size()));
  }
  Scope scope(&globals_);
  const ScopeGuard guard(*this, scope);
  const size_t required = macro.names.size() - macro.defaults.size();
  for (size_t i = 0; i < macro.names.size(); ++i) {
    if (i < arguments.positional.size()) {
      scope.set(macro.names[i], arguments.positional[i]);
    } else if (i >= required) {
      scope.set(macro.names[i], evaluate(*macro.defaults[i - required]));
    } else {
      scope.set(macro.names[i], Value::undefined(fmt::format("'{}' is undefined", macro.names[i])));
    }
  }
  for (const auto& [name, value] : arguments.keywords) {
    if (scope.find_here(name) == nullptr) {
      throw ValueError(fmt::format("macro '{}' has no parameter '{}'", macro.text, name));
    }
    scope.set(name, value);
  }
  std::string text;
  const OutputTo redirect(out_, text);
  run(macro.body);
  return Value(std::move(text));
}

std::string Evaluator::render(const Body& body) {
  std::string out;
  out_ = &out;
  try {
    run(body);
  } catch (const ValueError& error) {
    throw TemplateError(line_, error.what());
  }
  return out;
}

std::string render(const Body& body, const RenderOptions& options) {
  return Evaluator(options).render(body);
}

}  // namespace flashloom::jinja
