#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "flashloom/text/token_documents.h"
#include "flashloom/text/tokenizer.h"

/// Multiple choice by likelihood, counted as EleutherAI's lm-evaluation-harness counts it.
namespace flashloom {

struct Question {
  std::string question;
  std::vector<std::string> choices;
  int64_t answer = 0;  ///< index of the right one
  std::string place;   ///< "questions.jsonl: line 3", for errors
};

/// Rows `{"question": text, "choices": [texts], "answer": index or the choice itself}`; other
/// fields are ignored. Throws IoError naming file and line for malformed JSON, missing or wrong
/// fields, fewer than two choices, an answer that is none of them, and a file without rows.
std::vector<Question> read_questions(const std::filesystem::path& file);

/// Adds a document for each choice of each question, in order: the question, a blank, the choice.
/// The tokens behind those of the question alone bear loss, so the document's loss is minus the
/// logarithm of the choice's probability. Blanks at the question's end count to the choice. An
/// empty question is the tokenizer's BOS token, or its end-of-sequence token. Of longer documents
/// than `sequence_length` the beginning is cut. Throws InvalidArgument, naming the row, for a
/// choice that adds no token or is longer than sequence_length, or an empty question without such a
/// token.
void add_choices(TokenDocuments& documents, std::span<const Question> questions,
                 const Tokenizer& tokenizer, int64_t sequence_length);

/// Shares of questions answered rightly, with their standard errors (of the mean; 0 for one row).
struct ChoiceAccuracy {
  int64_t questions = 0;
  double accuracy = 0, accuracy_error = 0;  ///< the likeliest choice (acc)
  /// The choice with the best log-likelihood per character of its text (acc_norm).
  double normalized = 0, normalized_error = 0;
};

/// `losses`: of the documents that add_choices added. The first of equal choices counts.
ChoiceAccuracy choice_accuracy(std::span<const Question> questions, std::span<const double> losses);

}  // namespace flashloom
