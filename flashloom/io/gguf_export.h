#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "flashloom/core/tensor_view.h"
#include "flashloom/io/gguf_model.h"
#include "flashloom/io/gguf_types.h"
#include "flashloom/io/gguf_writer.h"
#include "flashloom/io/model_config.h"

namespace flashloom {

/// "f32", "f16", "bf16", "q8_0", "q4_0" or "q4_k"; throws InvalidArgument for anything else.
GgmlType parse_gguf_type(std::string_view name);

/// How a tensor is stored in a file whose matrices are `type`: vectors as F32, as llama.cpp's
/// kernels want them; the head (of tied embeddings too) as Q8_0 where others have 4 bits, since its
/// errors go straight into the probabilities; rows that are no whole blocks in the next larger type
/// that fits, as llama.cpp chooses it (Q4_K: Q5_0), and at last as F16.
GgmlType gguf_stored_type(GgmlType type, const ModelConfig& config,
                          std::string_view hugging_face_name, const std::vector<int64_t>& shape);

/// Writes a model as one GGUF file that llama.cpp loads: config, vocabulary and chat template,
/// tensors given by their Hugging Face names. Q and K of the architecture "llama" are interleaved
/// again (permuted_heads()).
class GgufModelWriter {
 public:
  struct Tensor {
    std::string name;
    std::vector<int64_t> shape;
  };

  struct Options {
    GgmlType type = GgmlType::f16;  // of matrices
    std::string model_name = {};    // general.name
  };

  /// The vocabulary may be shorter than the embedding: the rest are unused tokens, as llama.cpp
  /// wants one for each row. Throws Unsupported for a config that GGUF has no keys for.
  GgufModelWriter(const std::string& path, const ModelConfig& config,
                  const StoredVocabulary& vocabulary, const std::vector<Tensor>& tensors,
                  const Options& options);

  /// f32, contiguous, each tensor once.
  void write(std::string_view hugging_face_name, const ConstTensorView& values);

  void finish() { writer_.finish(); }

 private:
  GgufWriter writer_;
};

}  // namespace flashloom
