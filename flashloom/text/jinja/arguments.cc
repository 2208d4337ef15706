#include <fmt/format.h>

#include <algorithm>

#include "flashloom/text/jinja/functions.h"

namespace flashloom::jinja {

std::vector<Value> Arguments::bind(std::string_view function,
                                   std::initializer_list<std::string_view> parameters,
                                   size_t required) const {
  if (positional.size() > parameters.size()) {
    throw ValueError(fmt::format("{}: expected at most {} arguments, got {}", function,
                                 parameters.size(), positional.size()));
  }
  std::vector<Value> values = positional;
  values.resize(parameters.size());
  std::vector<bool> given(parameters.size());
  std::fill_n(given.begin(), positional.size(), true);
  for (const auto& [name, value] : keywords) {
    const auto found = std::find(parameters.begin(), parameters.end(), name);
    if (found == parameters.end()) {
      throw ValueError(fmt::format("{}: the argument '{}' is not supported", function, name));
    }
    values[static_cast<size_t>(found - parameters.begin())] = value;
    given[static_cast<size_t>(found - parameters.begin())] = true;
  }
  for (size_t i = 0; i < required; ++i) {
    if (!given[i]) {
      throw ValueError(
          fmt::format("{}: the argument '{}' is missing", function, *(parameters.begin() + i)));
    }
  }
  return values;
}

void require_defined(const Value& value) {
  if (const auto* undefined = std::get_if<Undefined>(&value.storage())) {
    throw ValueError(undefined->name == nullptr ? "the value is undefined" : *undefined->name);
  }
}

}  // namespace flashloom::jinja
