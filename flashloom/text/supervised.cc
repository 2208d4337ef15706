#include "flashloom/text/supervised.h"

#include <fmt/format.h>

#include <algorithm>

#include "flashloom/core/error.h"
#include "flashloom/text/conversation_turns.h"

namespace flashloom {
namespace {

// The spelling of a special token that the chat template may write.
std::string spelling(const Tokenizer& tokenizer, std::optional<int32_t> id) {
  return id ? std::string(tokenizer.token(*id)) : std::string();
}

}  // namespace

SupervisedEncoder::SupervisedEncoder(Tokenizer tokenizer) : tokenizer_(std::move(tokenizer)) {
  if (!tokenizer_.chat_template().empty()) {
    chat_template_ =
        ChatTemplate::parse(tokenizer_.chat_template(), spelling(tokenizer_, tokenizer_.bos_id()),
                            spelling(tokenizer_, tokenizer_.eos_id()));
  }
}

void SupervisedEncoder::append(SupervisedExample& example, std::string_view text, bool loss) const {
  tokenizer_.encode_append(example.tokens, text, {.add_special_tokens = false});
  example.loss.resize(example.tokens.size(), loss ? 1 : 0);
}

// Puts the tokenizer's BOS before the first text, unless the text begins with it.
void SupervisedEncoder::begin(SupervisedExample& example) const {
  const auto prefix = tokenizer_.prefix_ids();
  const bool there = example.tokens.size() >= prefix.size() &&
                     std::equal(prefix.begin(), prefix.end(), example.tokens.begin());
  if (!there) {
    example.tokens.insert(example.tokens.begin(), prefix.begin(), prefix.end());
    example.loss.insert(example.loss.begin(), prefix.size(), 0);
  }
}

void SupervisedEncoder::close(SupervisedExample& example, size_t closed_from) const {
  const auto end = tokenizer_.eos_id();
  if (!end) {
    throw Error("the tokenizer names no end-of-sequence token, which closes every text");
  }
  const bool closed = example.tokens.size() > closed_from && example.tokens.back() == *end;
  if (!closed) {
    example.tokens.push_back(*end);
    example.loss.push_back(1);
  }
}

SupervisedExample SupervisedEncoder::encode_messages(const DataRow& row) const {
  if (!chat_template_) {
    throw Error("the model has no chat template, which rows of messages need");
  }
  const RenderedConversation conversation =
      render_conversation(*chat_template_, row.messages, row.tools, tokenizer_);
  const std::string_view text = conversation.text;
  SupervisedExample example;
  size_t at = 0;
  for (const AssistantTurn& turn : conversation.turns) {
    append(example, text.substr(at, turn.first - at), false);
    append(example, text.substr(turn.first, turn.last - turn.first), true);
    at = turn.last;
  }
  append(example, text.substr(at), false);
  return example;
}

SupervisedExample SupervisedEncoder::encode(const DataRow& row) const {
  try {
    if (row.kind == DataRowKind::messages) {
      return encode_messages(row);
    }
    SupervisedExample example;
    if (row.kind == DataRowKind::prompt_completion) {
      append(example, row.prompt, false);
      begin(example);
      const size_t prompt_tokens = example.tokens.size();
      append(example, row.completion, true);
      close(example, prompt_tokens);
    } else {
      append(example, row.text, true);
      if (row.ends) {
        close(example, 0);
      }
      if (row.begins) {
        begin(example);
      }
    }
    return example;
  } catch (const IoError&) {
    throw;
  } catch (const Error& error) {
    throw IoError(row.file, fmt::format("line {}", row.line), error.what());
  }
}

}  // namespace flashloom
