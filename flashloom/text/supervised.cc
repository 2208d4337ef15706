#include "flashloom/text/supervised.h"

#include <fmt/format.h>

#include <algorithm>

#include "flashloom/core/error.h"
#include "flashloom/text/conversation_turns.h"
#include "flashloom/text/data_reader.h"

namespace flashloom {
namespace {

// The spelling of a special token that the chat template may write.
std::string spelling(const Tokenizer& tokenizer, std::optional<int32_t> id) {
  return id ? std::string(tokenizer.token(*id)) : std::string();
}

bool has_loss(std::span<const uint8_t> loss) {
  return std::any_of(loss.begin() + 1, loss.end(), [](uint8_t flag) { return flag != 0; });
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
      close(example, 0);
      begin(example);
    }
    return example;
  } catch (const IoError&) {
    throw;
  } catch (const Error& error) {
    throw IoError(row.file, fmt::format("line {}", row.line), error.what());
  }
}

SupervisedData load_supervised(std::span<const std::filesystem::path> files,
                               const SupervisedEncoder& encoder, int64_t sequence_length) {
  if (sequence_length < 2) {
    throw InvalidArgument("load_supervised", "sequence_length", "2 or more",
                          fmt::format("{}", sequence_length));
  }
  const auto most = static_cast<size_t>(sequence_length);
  SupervisedData data;
  SupervisedCounts& counts = data.counts;
  const auto add = [&](std::span<const int32_t> tokens, std::span<const uint8_t> loss) {
    if (!tokens.empty() && has_loss(loss)) {
      data.documents.add(tokens, loss);
      ++counts.examples;
    } else {
      ++counts.dropped;
      counts.lost_tokens += static_cast<int64_t>(tokens.size());
    }
  };
  for (const std::filesystem::path& file : files) {
    read_data(file, [&](const DataRow& row) {
      const SupervisedExample example = encoder.encode(row);
      const std::span<const int32_t> tokens(example.tokens);
      const std::span<const uint8_t> loss(example.loss);
      ++counts.rows;
      if (row.kind == DataRowKind::document) {
        for (size_t at = 0; at < tokens.size(); at += most) {
          const size_t size = std::min(most, tokens.size() - at);
          add(tokens.subspan(at, size), loss.subspan(at, size));
        }
        return;
      }
      const size_t kept = std::min(most, tokens.size());
      counts.cut += kept < tokens.size() ? 1 : 0;
      counts.lost_tokens += static_cast<int64_t>(tokens.size() - kept);
      add(tokens.first(kept), loss.first(kept));
    });
  }
  if (counts.examples == 0) {
    throw IoError(
        files.empty() ? "data" : files.front().string(), "",
        fmt::format("no example is left to learn from: {}", describe(counts, sequence_length)));
  }
  return data;
}

std::string describe(const SupervisedCounts& counts, int64_t sequence_length) {
  return fmt::format(
      "{} rows, {} examples; {} longer than {} tokens cut, {} without loss dropped, {} tokens lost",
      counts.rows, counts.examples, counts.cut, sequence_length, counts.dropped,
      counts.lost_tokens);
}

}  // namespace flashloom
