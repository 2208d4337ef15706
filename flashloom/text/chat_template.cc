#include "flashloom/text/chat_template.h"

#include "flashloom/text/jinja/interpreter.h"
#include "flashloom/text/jinja/parser.h"

namespace flashloom {
namespace {

std::tm local_time() {
  const std::time_t now = std::time(nullptr);
  std::tm parts = {};
  localtime_r(&now, &parts);
  return parts;
}

}  // namespace

struct ChatTemplate::Parsed {
  jinja::Body body;
  std::string bos_token;
  std::string eos_token;
};

jinja::Value chat_messages(const std::vector<ChatMessage>& messages) {
  std::vector<jinja::Value> list;
  list.reserve(messages.size());
  for (const ChatMessage& message : messages) {
    list.push_back(jinja::Value::dict(
        {{"role", jinja::Value(message.role)}, {"content", jinja::Value(message.content)}}));
  }
  return jinja::Value::list(std::move(list));
}

ChatTemplate ChatTemplate::parse(std::string_view source, std::string bos_token,
                                 std::string eos_token) {
  return ChatTemplate(std::make_shared<const Parsed>(Parsed{.body = jinja::parse_template(source),
                                                            .bos_token = std::move(bos_token),
                                                            .eos_token = std::move(eos_token)}));
}

std::string ChatTemplate::render(const jinja::Value& messages,
                                 const ChatTemplateOptions& options) const {
  jinja::RenderOptions render;
  render.now = options.now.value_or(local_time());
  // Later ones win, as keyword arguments do in apply_chat_template.
  render.variables = {
      {"messages", messages},
      {"tools", options.tools.is_undefined() ? jinja::Value(jinja::None()) : options.tools},
      {"documents", jinja::Value(jinja::None())},
      {"add_generation_prompt", jinja::Value(options.add_generation_prompt)}};
  // transformers passes the special tokens that there are, no others.
  if (!parsed_->bos_token.empty()) {
    render.variables.emplace_back("bos_token", jinja::Value(parsed_->bos_token));
  }
  if (!parsed_->eos_token.empty()) {
    render.variables.emplace_back("eos_token", jinja::Value(parsed_->eos_token));
  }
  render.variables.insert(render.variables.end(), options.variables.begin(),
                          options.variables.end());
  return jinja::render(parsed_->body, render);
}

}  // namespace flashloom
