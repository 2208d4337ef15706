#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "flashloom/models/llama/llama.h"
#include "flashloom/text/token_documents.h"
#include "flashloom/text/tokenizer.h"

namespace flashloom {

/// What a document asks, and how it answers.
struct SampleQuestion {
  std::vector<int32_t> tokens;  // up to the first token that bears loss
  std::string prompt;           // the same as text, special tokens shown
  std::string expected;         // the tokens that bear loss, at most as many as an answer may have
};

/// `count` documents, evenly spaced over all. Where everything bears loss, as in plain text, the
/// question is the beginning. Documents whose question is longer than `longest_question` are passed
/// over, so that answers stay cheap.
std::vector<SampleQuestion> sample_questions(const TokenDocuments& documents,
                                             const Tokenizer& tokenizer, int64_t count,
                                             int64_t answer_tokens,
                                             int64_t longest_question = 1024);

/// The likeliest continuation of each question, token by token, up to an end token or
/// `answer_tokens`. Its memory (a cache of keys and values, and activations of a part of a prompt)
/// is planned apart and freed at once; nothing is answered, and the list is empty, if that is more
/// than `memory_budget`, or once `stop` says so. Changes nothing in the model.
std::vector<std::string> answer_questions(const LlamaModel& model, const Tokenizer& tokenizer,
                                          const std::vector<SampleQuestion>& questions,
                                          int64_t answer_tokens, int64_t memory_budget,
                                          const std::function<bool()>& stop);

}  // namespace flashloom
