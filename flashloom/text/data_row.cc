#include "flashloom/text/data_row.h"

#include <fmt/format.h>

#include <array>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/text/json_value.h"

namespace flashloom {
namespace {

using jinja::Dict;
using jinja::Value;

const std::string& text_field(const Dict& row, std::string_view name) {
  const Value* value = row.find(name);
  if (value == nullptr) {
    throw Error(fmt::format("the field `{}` is missing", name));
  }
  if (value->string() == nullptr) {
    throw Error(fmt::format("`{}`: expected a string, got {}", name, value->type_name()));
  }
  return *value->string();
}

// A list, not empty, of objects that each have the string field `role`.
const std::vector<Value>& message_list(const Value& value, std::string_view name,
                                       std::string_view role) {
  if (value.list() == nullptr || value.list()->items.empty()) {
    throw Error(fmt::format("`{}`: expected a list of messages, got {}", name,
                            value.list() == nullptr ? value.type_name() : "an empty list"));
  }
  size_t index = 0;
  for (const Value& message : value.list()->items) {
    const Value* found = message.dict() == nullptr ? nullptr : message.dict()->find(role);
    if (found == nullptr || found->string() == nullptr) {
      throw Error(
          fmt::format("`{}[{}]`: expected an object with a string `{}`", name, index, role));
    }
    ++index;
  }
  return value.list()->items;
}

std::string_view sharegpt_role(std::string_view from) {
  constexpr std::array<std::array<std::string_view, 2>, 5> kRoles = {
      {{"human", "user"},
       {"gpt", "assistant"},
       {"function_call", "assistant"},
       {"observation", "tool"},
       {"function_response", "tool"}}};
  for (const auto& [name, role] : kRoles) {
    if (name == from) {
      return role;
    }
  }
  return from;
}

Value sharegpt_messages(const Value& conversations) {
  std::vector<Value> messages;
  for (const Value& turn : message_list(conversations, "conversations", "from")) {
    messages.push_back(
        Value::dict({{"role", Value(sharegpt_role(*turn.dict()->find("from")->string()))},
                     {"content", Value(text_field(*turn.dict(), "value"))}}));
  }
  return Value::list(std::move(messages));
}

Value tools_of(const Dict& row) {
  const Value* tools = row.find("tools");
  if (tools == nullptr || tools->is_none()) {
    return {};
  }
  if (tools->list() == nullptr) {
    throw Error(fmt::format("`tools`: expected a list, got {}", tools->type_name()));
  }
  return *tools;
}

// The one format that the row's fields name.
std::string_view format_of(const Dict& row) {
  struct Format {
    std::string_view name;
    std::array<std::string_view, 2> fields;
  };

  constexpr std::array<Format, 5> kFormats = {
      {{"messages", {"messages", "messages"}},
       {"conversations", {"conversations", "conversations"}},
       {"prompt + completion", {"prompt", "completion"}},
       {"instruction + output", {"instruction", "output"}},
       {"text", {"text", "text"}}}};
  std::string_view found;
  for (const Format& format : kFormats) {
    if (row.find(format.fields[0]) == nullptr && row.find(format.fields[1]) == nullptr) {
      continue;
    }
    if (found == "instruction + output" && format.name == "text") {
      continue;
    }
    if (!found.empty()) {
      throw Error(fmt::format("the row has fields of two formats: {} and {}", found, format.name));
    }
    found = format.name;
  }
  if (found.empty()) {
    throw Error(
        "expected `messages`, `prompt` and `completion`, `text`, `instruction` and `output`, or "
        "`conversations`; the row has none of them");
  }
  return found;
}

}  // namespace

std::string alpaca_prompt(std::string_view instruction, std::string_view input) {
  if (input.empty()) {
    return fmt::format(
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\n{}\n\n### Response:\n",
        instruction);
  }
  return fmt::format(
      "Below is an instruction that describes a task, paired with an input that provides further "
      "context. Write a response that appropriately completes the request.\n\n### "
      "Instruction:\n{}\n\n### Input:\n{}\n\n### Response:\n",
      instruction, input);
}

namespace {

DataRow row_of(const Value& value) {
  if (value.dict() == nullptr) {
    throw Error(fmt::format("expected a JSON object, got {}", value.type_name()));
  }
  const Dict& row = *value.dict();
  const std::string_view format = format_of(row);
  DataRow out;
  if (format == "messages" || format == "conversations") {
    out.kind = DataRowKind::messages;
    out.tools = tools_of(row);
    const Value& list = *row.find(format);
    out.messages = format == "messages" ? list : sharegpt_messages(list);
    (void)message_list(out.messages, "messages", "role");
  } else if (format == "text") {
    out.text = text_field(row, "text");
  } else {
    out.kind = DataRowKind::prompt_completion;
    if (format == "prompt + completion") {
      out.prompt = text_field(row, "prompt");
      out.completion = text_field(row, "completion");
    } else {
      const Value* input = row.find("input");
      const bool has_input = input != nullptr && !input->is_none();
      out.prompt = alpaca_prompt(text_field(row, "instruction"),
                                 has_input ? text_field(row, "input") : std::string());
      out.completion = text_field(row, "output");
    }
  }
  return out;
}

}  // namespace

DataRow parse_data_row(std::string_view json) {
  return row_of(parse_json(json));
}

DataRow parse_data_row(std::string_view json, JsonParser& parser) {
  return row_of(parser.parse_padded(json));
}

}  // namespace flashloom
