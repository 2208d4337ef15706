#pragma once

#include <cstdint>
#include <string>

#include "flashloom/systolic/program/attention_problem.h"

namespace flashloom::cli {

/// The attention of a model's layers.
struct ModelAttention {
  std::string type;  // model_type
  int64_t layers = 1;
  systolic::AttentionProblem problem;
};

/// From a Hugging Face config.json or the directory that holds it: any decoder or encoder whose
/// layers are alike, by the names of Llama, GPT-2, Falcon, BERT and DeepSeek (whose values have a
/// dimension of their own); the text part of a model of several kinds. `asked` brings queries and
/// keys. Throws IoError naming the field, also for windows that would hide a key: the array masks
/// diagonals and tails.
ModelAttention read_model_attention(const std::string& path,
                                    const systolic::AttentionProblem& asked);

}  // namespace flashloom::cli
