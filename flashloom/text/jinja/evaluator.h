#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "flashloom/text/jinja/budget.h"
#include "flashloom/text/jinja/functions.h"
#include "flashloom/text/jinja/interpreter.h"
#include "flashloom/text/jinja/syntax.h"

namespace flashloom::jinja {

/// Variables of a loop's pass, a macro's call or the template, inside another scope.
class Scope {
 public:
  explicit Scope(Scope* outer) : outer_(outer) {}

  void set(std::string_view name, Value value);
  /// Null if this scope has no such variable.
  const Value* find_here(std::string_view name) const;
  /// Looks outward too.
  const Value* find(std::string_view name) const;

 private:
  Scope* outer_;
  std::vector<std::pair<std::string_view, Value>> variables_;  // names live in the syntax tree
};

/// One rendering: expressions are in evaluator.cc, statements in interpreter.cc.
class Evaluator {
 public:
  explicit Evaluator(const RenderOptions& options);

  std::string render(const Body& body);

 private:
  enum class Flow { normal, break_loop, continue_loop };

  /// Calls nested deeper (macros that call themselves) are refused: each costs stack.
  static constexpr int kMaxDepth = 300;

  class DepthGuard {
   public:
    explicit DepthGuard(Evaluator& evaluator);

    ~DepthGuard() { --evaluator_.depth_; }

    DepthGuard(const DepthGuard&) = delete;
    DepthGuard& operator=(const DepthGuard&) = delete;

   private:
    Evaluator& evaluator_;
  };

  class ScopeGuard {
   public:
    ScopeGuard(Evaluator& evaluator, Scope& scope)
        : evaluator_(evaluator), saved_(evaluator.scope_) {
      evaluator.scope_ = &scope;
    }

    ~ScopeGuard() { evaluator_.scope_ = saved_; }

    ScopeGuard(const ScopeGuard&) = delete;
    ScopeGuard& operator=(const ScopeGuard&) = delete;

   private:
    Evaluator& evaluator_;
    Scope* saved_;
  };

  Flow run(const Body& body);
  Flow run_scoped(const Body& body);
  Flow run(const Statement& statement);
  Flow run_loop(const Statement& statement);
  void assign(const Statement& statement);
  void assign_block(const Statement& statement);
  void bind(const std::vector<std::string>& names, const Value& value);
  void write(std::string_view text);

  Value look_up(std::string_view name) const;
  Value evaluate(const Expression& expression);
  Value evaluate_children(const Expression& expression);
  Value evaluate_logic(const Expression& expression);
  Value evaluate_comparison(const Expression& expression);
  Value evaluate_dict(const Expression& expression);
  Value evaluate_call(const Expression& expression);
  Value concatenate(const Expression& expression);
  Arguments arguments(const Expression& expression);
  /// The chain of filters of a set block, whose innermost input is null.
  Value apply_filters(const Expression& expression, const Value& input);
  Value call_macro(const Statement& macro, const Arguments& arguments);
  Value call_global(std::string_view name, const Arguments& arguments);
  static void set_attribute(Namespace& space, std::string_view name, Value value);

  const RenderOptions& options_;
  Budget budget_;
  Scope globals_;
  Scope* scope_;
  std::string* out_ = nullptr;
  int line_ = 1;
  int depth_ = 0;
};

}  // namespace flashloom::jinja
