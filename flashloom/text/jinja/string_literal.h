#pragma once

#include <string>
#include <string_view>

namespace flashloom::jinja {

/// The value of a string literal's inside, with the escapes of Python. Throws TemplateError for an
/// escape that names no character.
std::string string_literal(std::string_view inside, int line);

}  // namespace flashloom::jinja
