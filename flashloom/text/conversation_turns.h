#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "flashloom/text/chat_template.h"
#include "flashloom/text/tokenizer.h"

namespace flashloom {

/// Bytes [first, last) of a rendered conversation: what the model would have to write.
struct AssistantTurn {
  size_t first = 0;
  size_t last = 0;
};

struct RenderedConversation {
  std::string text;
  std::vector<AssistantTurn> turns;  // in order, not overlapping
};

/// Renders a conversation and finds its assistant turns by rendering prefixes of it. A turn begins
/// where the prompt for it ends: the messages before it with a generation prompt. It ends behind
/// its last special token (end of turn), if only white space follows it, else with what the message
/// adds. Two kinds of template need more:
/// - one that renders a turn differently once others follow (Qwen3 drops thoughts): the turn ends
///   behind the first end token;
/// - one whose generation prompt holds more than the header (an opened thought): the turn begins
///   where the prompt and the conversation part.
/// Throws jinja::TemplateError, or Error if a turn cannot be found.
RenderedConversation render_conversation(const ChatTemplate& chat_template,
                                         const jinja::Value& messages, const jinja::Value& tools,
                                         const Tokenizer& tokenizer);

}  // namespace flashloom
