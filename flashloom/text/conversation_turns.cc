#include "flashloom/text/conversation_turns.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "flashloom/core/error.h"
#include "flashloom/text/jinja/characters.h"
#include "flashloom/text/jinja/template_error.h"

namespace flashloom {
namespace {

using jinja::Value;

class TurnFinder {
 public:
  TurnFinder(const ChatTemplate& chat_template, const Value& messages, const Value& tools,
             const Tokenizer& tokenizer)
      : template_(chat_template), messages_(messages), tools_(tools), tokenizer_(tokenizer) {}

  RenderedConversation run() {
    RenderedConversation out;
    text_ = render(messages_, false);
    const auto& all = messages_.list()->items;
    for (size_t i = 0; i < all.size(); ++i) {
      const Value* role = all[i].dict()->find("role");
      if (role->string() != nullptr && *role->string() == "assistant") {
        const size_t least = out.turns.empty() ? 0 : out.turns.back().last;
        const size_t first = begin_of(i, least);
        out.turns.push_back({.first = first, .last = end_of(i, first)});
      }
    }
    out.text = std::move(text_);
    return out;
  }

 private:
  std::string render(const Value& messages, bool add_generation_prompt) const {
    return template_.render(messages,
                            {.add_generation_prompt = add_generation_prompt, .tools = tools_});
  }

  Value first_messages(size_t count) const {
    const auto& all = messages_.list()->items;
    return Value::list({all.begin(), all.begin() + static_cast<std::ptrdiff_t>(count)});
  }

  size_t common_prefix(std::string_view other) const {
    const auto parting = std::mismatch(text_.begin(), text_.end(), other.begin(), other.end());
    return static_cast<size_t>(parting.first - text_.begin());
  }

  [[noreturn]] void fail(size_t turn) const {
    throw Error(
        fmt::format("the assistant's turn in messages[{}] cannot be found in what the chat "
                    "template renders",
                    turn));
  }

  size_t begin_of(size_t turn, size_t least) const {
    std::optional<std::string> prompt;
    try {
      prompt = render(first_messages(turn), true);
    } catch (const jinja::TemplateError&) {
      // Many templates refuse an empty conversation: an assistant that speaks first has no prompt.
      if (turn != 0) {
        throw;
      }
    }
    const size_t first = prompt ? common_prefix(*prompt) : begin_of_content(turn);
    const bool whole = prompt && first == prompt->size();
    if (!whole && prompt && !text_.starts_with(render(first_messages(turn), false))) {
      fail(turn);
    }
    if (first < least) {
      fail(turn);
    }
    return first;
  }

  // Where the text changes when the message's content does.
  size_t begin_of_content(size_t turn) const {
    const Value* content = messages_.list()->items[turn].dict()->find("content");
    if (content == nullptr || content->string() == nullptr) {
      fail(turn);
    }
    const auto own = jinja::strip(*content->string(), jinja::Ends::left);
    std::vector<Value> changed = messages_.list()->items;
    auto fields = changed[turn].dict()->items();
    fields.emplace_back("content", Value(own.starts_with('x') ? "y" : "x"));
    changed[turn] = Value::dict(std::move(fields));
    return common_prefix(render(Value::list(std::move(changed)), false));
  }

  size_t end_of(size_t turn, size_t first) const {
    const std::string until = render(first_messages(turn + 1), false);
    if (until.size() < first || !text_.starts_with(until)) {
      return end_by_first_token(turn, first);
    }
    // The last special token of the turn, if nothing but white space follows.
    const std::string_view words = std::string_view(text_).substr(first, until.size() - first);
    const auto ids = tokenizer_.encode(words, {.add_special_tokens = false});
    const auto last = std::find_if(ids.rbegin(), ids.rend(), [&](int32_t id) {
      return tokenizer_.is_special(id) || tokenizer_.is_end(id);
    });
    if (last == ids.rend()) {
      return until.size();
    }
    const std::string_view spelling = tokenizer_.token(*last);
    const size_t at = words.rfind(spelling);
    const size_t end = at == std::string_view::npos ? words.size() : at + spelling.size();
    const bool only_space = jinja::strip(words.substr(end), jinja::Ends::left).empty();
    return only_space ? first + end : until.size();
  }

  size_t end_by_first_token(size_t turn, size_t first) const {
    const std::string_view rest = std::string_view(text_).substr(first);
    size_t end = std::string_view::npos;
    for (const int32_t id : tokenizer_.end_ids()) {
      const std::string_view spelling = tokenizer_.token(id);
      const size_t at = rest.find(spelling);
      if (!spelling.empty() && at != std::string_view::npos) {
        end = std::min(end, at + spelling.size());
      }
    }
    if (end == std::string_view::npos) {
      fail(turn);
    }
    return first + end;
  }

  const ChatTemplate& template_;
  const Value& messages_;
  const Value& tools_;
  const Tokenizer& tokenizer_;
  std::string text_;
};

}  // namespace

RenderedConversation render_conversation(const ChatTemplate& chat_template, const Value& messages,
                                         const Value& tools, const Tokenizer& tokenizer) {
  return TurnFinder(chat_template, messages, tools, tokenizer).run();
}

}  // namespace flashloom
