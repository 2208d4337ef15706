#include "flashloom/core/error.h"
#include "flashloom/text/chat_template.h"
#include "flashloom/text/json_value.h"
#include "fuzz/targets.h"

namespace flashloom::fuzz {

void read_chat_template(std::string_view bytes) {
  static const jinja::Value kMessages = parse_json(R"([
      {"role": "system", "content": "Be brief."},
      {"role": "user", "content": "What is 1 + 1?"},
      {"role": "assistant", "content": "<think>easy</think>2",
       "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1, "b": [1.5, null]}}}]},
      {"role": "tool", "content": "2"}])");
  static const jinja::Value kTools =
      parse_json(R"([{"type": "function", "function": {"name": "add", "parameters": {}}}])");
  try {
    const ChatTemplate chat_template = ChatTemplate::parse(bytes, "<s>", "</s>");
    static_cast<void>(chat_template.render(
        kMessages,
        {.add_generation_prompt = true, .tools = kTools, .variables = {}, .now = std::tm()}));
  } catch (const Error&) {
  }
}

}  // namespace flashloom::fuzz
