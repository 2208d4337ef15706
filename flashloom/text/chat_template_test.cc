#include "flashloom/text/chat_template.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "flashloom/text/jinja/interpreter.h"
#include "flashloom/text/jinja/parser.h"
#include "flashloom/text/jinja/template_error.h"
#include "flashloom/text/json_value.h"

namespace flashloom {
namespace {

using jinja::TemplateError;
using jinja::Value;

std::string read(const std::string& name) {
  std::ifstream file(FLASHLOOM_SOURCE_DIR "/tests/golden/text/" + name, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  EXPECT_TRUE(file) << name;
  return text.str();
}

const Value& golden() {
  static const Value value = parse_json(read("chat_templates.json"));
  return value;
}

const Value& field(const Value& object, std::string_view name) {
  const Value* found = object.dict()->find(name);
  EXPECT_NE(found, nullptr) << name;
  return *found;
}

const std::vector<Value>& items(const Value& list) {
  return list.list()->items;
}

// What rendering gives, as the golden file has it: the text, or that it failed.
template <class Render>
void expect_golden(const Value& expected, const std::string& what, Render render) {
  const Value* text = expected.dict()->find("expected");
  try {
    const std::string actual = render();
    if (text == nullptr) {
      ADD_FAILURE() << what << "\nrendered, but Python raises "
                    << *field(expected, "error").string() << "\n"
                    << actual;
    } else {
      EXPECT_EQ(actual, *text->string()) << what;
    }
  } catch (const TemplateError& error) {
    EXPECT_EQ(text, nullptr) << what << "\nfailed: " << error.what();
  }
}

std::string render(std::string_view source,
                   std::vector<std::pair<std::string, Value>> variables = {}) {
  jinja::RenderOptions options;
  options.variables = std::move(variables);
  return jinja::render(jinja::parse_template(source), options);
}

std::string failure(std::string_view source) {
  try {
    return "rendered: " + render(source);
  } catch (const TemplateError& error) {
    return error.what();
  }
}

TEST(ChatTemplate, RendersPublishedTemplatesAsTransformers) {
  const auto& conversations = items(field(golden(), "messages"));
  const auto& settings = items(field(golden(), "settings"));
  for (const Value& expected : items(field(golden(), "conversations"))) {
    const std::string name = *field(expected, "template").string();
    const auto& tokens = items(field(field(golden(), "tokens"), name));
    const auto chat_template = ChatTemplate::parse(
        read("templates/" + name + ".jinja"),
        tokens[0].string() == nullptr ? "" : *tokens[0].string(), *tokens[1].string());
    const auto index = static_cast<size_t>(field(expected, "messages").as_integer("index"));
    const auto number = static_cast<size_t>(field(expected, "settings").as_integer("index"));
    ChatTemplateOptions options;
    for (const auto& [key, value] : settings[number].dict()->items()) {
      if (key == "add_generation_prompt") {
        options.add_generation_prompt = value.truth();
      } else if (key == "tools") {
        options.tools = value;
      } else {
        options.variables.emplace_back(key, value);
      }
    }
    expect_golden(expected, name + ", conversation " + std::to_string(index),
                  [&] { return chat_template.render(conversations[index], options); });
  }
}

TEST(ChatTemplate, RendersSingleConstructsAsJinja2) {
  const auto& variables = field(golden(), "variables").dict()->items();
  for (const Value& expected : items(field(golden(), "expressions"))) {
    const std::string& source = *field(expected, "source").string();
    expect_golden(expected, source, [&] { return render(source, variables); });
  }
}

TEST(ChatTemplate, NamesTheLineAndTheConstructThatItDoesNotKnow) {
  EXPECT_EQ(failure("a\n{% include 'x' %}"),
            "chat template, line 2: the statement 'include' is not supported");
  EXPECT_EQ(failure("{{ 1 |\n groupby('x') }}"),
            "chat template, line 1: the filter 'groupby' is not supported");
  EXPECT_EQ(failure("\n\n{{ 1 is filter }}"),
            "chat template, line 3: the test 'filter' is not supported");
  EXPECT_EQ(failure("{{ 'x'.format(1) }}"),
            "chat template, line 1: the method str.format is not supported");
  EXPECT_EQ(failure("{% for x in y recursive %}{% endfor %}"),
            "chat template, line 1: a recursive loop is not supported");
  EXPECT_EQ(failure("{{ f(*x) }}"),
            "chat template, line 1: arguments unpacked by * are not supported");
  EXPECT_EQ(failure("\n{{ nope.x }}"), "chat template, line 2: 'nope' is undefined");
  EXPECT_EQ(failure("{% if x %}\n"),
            "chat template, line 1: expected {% endif %}, got the end of the template");
  EXPECT_EQ(failure("{{ raise_exception('no') }}"),
            "chat template, line 1: the template refuses the conversation: no");
  EXPECT_EQ(failure("{{ {}.pop('x') }}"),
            "chat template, line 1: the method dict.pop is not supported");
}

TEST(ChatTemplate, RefusesWhatIsNotWellFormed) {
  for (const char* source : {"{{",
                             "{{ 1",
                             "{% if %}",
                             "{% endif %}",
                             "{{ 'a }}",
                             "{# a",
                             "{% raw %}",
                             "{{ 1 + }}",
                             "{{ (1 }}",
                             "{{ 1) }}",
                             "{{ a.}}",
                             "{{ [1 2] }}",
                             "{% set %}",
                             "{% set x %}",
                             "{% for %}",
                             "{% for x y %}",
                             "{{ @ }}",
                             "{{ '\\xg' }}",
                             "{{ '\\ud800' }}",
                             "{{ 99999999999999999999 }}",
                             "{{ 01 }}",
                             "{% break %}",
                             "{% macro f(a=1, b) %}{% endmacro %}",
                             "{{ a[] }}",
                             "{{ a[1,2] }}",
                             "{{ a[::0] }}",
                             "{{ 'x'[::0] }}",
                             "{% %}",
                             "{{ }}",
                             "{% if 1 %}{% else %}{% elif 2 %}{% endif %}",
                             "{{ 1 if }}",
                             "{{ a b }}",
                             "{{ x is }}",
                             "{{ x | }}",
                             "{% for loop in [1] %}{% endfor %}",
                             "{% set a, b = 1 %}",
                             "{% set a, b = [1] %}",
                             "\xff{{ \xff }}",
                             "{{ 2 ** 64 }}",
                             "{{ -9223372036854775807 - 2 }}",
                             "{{ (-9223372036854775807 - 1) // -1 }}",
                             "{{ 9223372036854775807 + 1 }}",
                             "{{ 1 % 0 }}",
                             "{{ {1: 2} }}"}) {
    EXPECT_THROW(render(source), TemplateError) << source;
  }
}

TEST(ChatTemplate, BoundsWhatAHostileTemplateCanDo) {
  const auto repeat = [](std::string_view text, size_t times) {
    std::string out;
    for (size_t i = 0; i < times; ++i) {
      out += text;
    }
    return out;
  };
  const auto doubled = [](const std::string& start, const std::string& twice, int times) {
    return "{% set n = namespace(s=" + start + ") %}{% for i in range(" + std::to_string(times) +
           ") %}{% set n.s = " + twice + " %}{% endfor %}";
  };
  const std::vector<std::string> sources = {
      "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
      doubled("'xxxxxxxx'", "n.s ~ n.s", 99999),
      "{{ 'x' * 9223372036854775807 }}",
      "{{ [1] * 2000000000 }}",
      doubled("[1]", "[n.s, n.s]", 99999),
      doubled("[1]", "[n.s, n.s]", 40) + "{{ n.s }}",
      doubled("[1]", "[n.s, n.s]", 40) + "{{ n.s == n.s|list }}",
      "{% set n = namespace() %}{% for i in range(9) %}{% set n = namespace(p=n) %}{% endfor %}",
      "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
      "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
      "{{ " + repeat("(", 100000) + "1" + repeat(")", 100000) + " }}",
      "{{ " + repeat("[", 100000),
      "{{ 1" + repeat(" + 1", 100000) + " }}",
      "{{ " + repeat("not ", 100000) + "1 }}",
      "{{ " + repeat("-", 100000) + "1 }}",
      "{{ x" + repeat(".x", 100000) + " }}",
      "{{ x" + repeat("|trim", 100000) + " }}",
      "{{ 1" + repeat(" if 1 else 1", 50000) + " }}",
      repeat("{% if 1 %}", 100000),
      repeat("{% for i in [1] %}", 50000),
      "{{ range(100001) }}",
      "{{ 'x'.replace('', 'y' * 10000000).replace('', 'y' * 10000000) }}",
      "{{ strftime_now('%c' * 100000) }}",
      std::string((size_t{1} << 20) + 1, ' '),
  };
  for (const std::string& source : sources) {
    EXPECT_THROW(render(source), TemplateError) << source.substr(0, 100);
  }
}

TEST(ChatTemplate, KeepsNoStateBetweenRenderings) {
  const auto chat_template = ChatTemplate::parse(
      "{% set n = namespace(c=0) %}{% for m in messages %}{% set n.c = n.c + 1 %}{% endfor %}{{ "
      "n.c }}");
  const Value messages = chat_messages({{"user", "a"}, {"assistant", "b"}});
  EXPECT_EQ(chat_template.render(messages), "2");
  EXPECT_EQ(chat_template.render(messages), "2");
}

TEST(ChatTemplate, FormatsTheGivenTime) {
  const auto chat_template = ChatTemplate::parse("{{ strftime_now('%d %b %Y') }}");
  std::tm now = {};
  now.tm_year = 126;
  now.tm_mon = 1;
  now.tm_mday = 3;
  EXPECT_EQ(chat_template.render(Value::list({}), {.now = now}), "03 Feb 2026");
}

}  // namespace
}  // namespace flashloom
