#pragma once

#include <ctime>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "flashloom/text/jinja/value.h"

namespace flashloom {

/// A message of a conversation. Rows of a data set may carry more (tool calls, …): those are
/// values.
struct ChatMessage {
  std::string role;
  std::string content;
};

/// The list of dicts that a template sees.
jinja::Value chat_messages(const std::vector<ChatMessage>& messages);

struct ChatTemplateOptions {
  /// End with the header of an assistant's turn, for the model to go on.
  bool add_generation_prompt = false;
  /// JSON schemas of functions; undefined stands for None, which is no tools.
  jinja::Value tools = {};
  /// More variables ("enable_thinking", "date_string").
  std::vector<std::pair<std::string, jinja::Value>> variables = {};
  /// What `strftime_now` formats; the present local time if absent.
  std::optional<std::tm> now = {};
};

/// A model's chat template: Jinja as Hugging Face renders it (trim_blocks and lstrip_blocks on,
/// keep_trailing_newline off, break and continue, `generation` blocks, raise_exception,
/// strftime_now, its own tojson). The subset is all that published chat templates use; what lies
/// outside of it (include, call, filter and with blocks, recursive loops, string formatting, macros
/// inside loops, dict keys that are no strings, …) is refused when the template is parsed where
/// that can be seen, else when it is met. Text, depth and work are limited, so that a hostile
/// template can neither hang nor overflow the stack. A value: copies share.
class ChatTemplate {
 public:
  /// Throws jinja::TemplateError naming line and construct.
  static ChatTemplate parse(std::string_view source, std::string bos_token = "",
                            std::string eos_token = "");

  /// `messages` is a list of dicts. Throws jinja::TemplateError if the template refuses them.
  std::string render(const jinja::Value& messages, const ChatTemplateOptions& options = {}) const;

 private:
  struct Parsed;

  explicit ChatTemplate(std::shared_ptr<const Parsed> parsed) : parsed_(std::move(parsed)) {}

  std::shared_ptr<const Parsed> parsed_;
};

}  // namespace flashloom
