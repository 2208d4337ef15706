#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "flashloom/text/jinja/functions.h"

namespace flashloom::jinja {
namespace {

[[noreturn]] void fail_types(std::string_view symbol, const Value& a, const Value& b) {
  throw ValueError(fmt::format("cannot compute {} {} {}", a.type_name(), symbol, b.type_name()));
}

// By reference: the overflow builtins write `value` while the arguments are evaluated.
int64_t checked(bool overflow, const int64_t& value) {
  if (overflow) {
    throw ValueError("a number beyond 64 bits");
  }
  return value;
}

int64_t floor_divide(int64_t a, int64_t b) {
  if (b == 0) {
    throw ValueError("division by zero");
  }
  if (b == -1) {
    int64_t negated = 0;
    return checked(__builtin_sub_overflow(int64_t{0}, a, &negated), negated);
  }
  return a / b - ((a % b != 0 && (a < 0) != (b < 0)) ? 1 : 0);
}

int64_t integer_power(int64_t base, int64_t exponent) {
  int64_t result = 1;
  // Beyond 63 factors only 0, 1 and -1 stay within 64 bits.
  const int64_t factors = exponent > 64 && base >= -1 && base <= 1 ? 64 + exponent % 2 : exponent;
  for (int64_t i = 0; i < factors; ++i) {
    result = checked(__builtin_mul_overflow(result, base, &result), result);
  }
  return result;
}

Value integer_operator(std::string_view symbol, int64_t a, int64_t b) {
  int64_t result = 0;
  if (symbol == "+") {
    return checked(__builtin_add_overflow(a, b, &result), result);
  }
  if (symbol == "-") {
    return checked(__builtin_sub_overflow(a, b, &result), result);
  }
  if (symbol == "*") {
    return checked(__builtin_mul_overflow(a, b, &result), result);
  }
  if (symbol == "//") {
    return floor_divide(a, b);
  }
  if (symbol == "%") {
    if (b == -1) {
      return int64_t{0};
    }
    return a - floor_divide(a, b) * b;
  }
  if (symbol == "**" && b >= 0) {
    return integer_power(a, b);
  }
  if (b == 0 && symbol == "/") {
    throw ValueError("division by zero");
  }
  return symbol == "/" ? static_cast<double>(a) / static_cast<double>(b)
                       : std::pow(static_cast<double>(a), static_cast<double>(b));
}

Value float_operator(std::string_view symbol, double a, double b) {
  if (symbol == "+") {
    return a + b;
  }
  if (symbol == "-") {
    return a - b;
  }
  if (symbol == "*") {
    return a * b;
  }
  if (symbol == "**") {
    return std::pow(a, b);
  }
  if (b == 0) {
    throw ValueError("division by zero");
  }
  if (symbol == "/") {
    return a / b;
  }
  const double floored = std::floor(a / b);
  return symbol == "//" ? floored : a - floored * b;
}

Value repeat(const Value& value, int64_t times, Budget& budget) {
  const auto count = static_cast<size_t>(std::max<int64_t>(0, times));
  const size_t size =
      value.string() != nullptr ? value.string()->size() : value.list()->items.size();
  if (size != 0 && count > std::numeric_limits<int32_t>::max() / size) {
    throw ValueError("a repetition too long");
  }
  if (const std::string* text = value.string()) {
    budget.charge_text(size * count);
    std::string out;
    out.reserve(size * count);
    for (size_t i = 0; i < count && size != 0; ++i) {
      out += *text;
    }
    return Value(std::move(out));
  }
  budget.charge(static_cast<int64_t>(size * count));
  std::vector<Value> items;
  for (size_t i = 0; i < count && size != 0; ++i) {
    items.insert(items.end(), value.list()->items.begin(), value.list()->items.end());
  }
  return Value::list(std::move(items), value.list()->tuple);
}

Value add(const Value& a, const Value& b, Budget& budget) {
  if (a.string() != nullptr && b.string() != nullptr) {
    budget.charge_text(a.string()->size() + b.string()->size());
    return Value(*a.string() + *b.string());
  }
  if (a.list() != nullptr && b.list() != nullptr && a.list()->tuple == b.list()->tuple) {
    std::vector<Value> items = a.list()->items;
    budget.charge(static_cast<int64_t>(items.size() + b.list()->items.size()));
    items.insert(items.end(), b.list()->items.begin(), b.list()->items.end());
    return Value::list(std::move(items), a.list()->tuple);
  }
  fail_types("+", a, b);
}

}  // namespace

Value apply_operator(std::string_view symbol, const Value& a, const Value* b, Budget& budget) {
  require_defined(a);
  if (b == nullptr) {
    if (!a.is_number()) {
      throw ValueError(fmt::format("cannot compute {}{}", symbol, a.type_name()));
    }
    return apply_operator(symbol, Value(int64_t{0}), &a, budget);
  }
  require_defined(*b);
  if (a.is_number() && b->is_number()) {
    return a.is_float() || b->is_float()
               ? float_operator(symbol, a.as_double(), b->as_double())
               : integer_operator(symbol, a.as_integer(symbol), b->as_integer(symbol));
  }
  if (symbol == "+") {
    return add(a, *b, budget);
  }
  const auto repeatable = [](const Value& value) {
    return value.string() != nullptr || value.list() != nullptr;
  };
  if (symbol == "*" && repeatable(a) && (b->is_integer() || b->is_bool())) {
    return repeat(a, b->as_integer("*"), budget);
  }
  if (symbol == "*" && repeatable(*b) && (a.is_integer() || a.is_bool())) {
    return repeat(*b, a.as_integer("*"), budget);
  }
  fail_types(symbol, a, *b);
}

}  // namespace flashloom::jinja
