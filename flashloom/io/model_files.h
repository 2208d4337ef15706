#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "flashloom/core/block_format.h"
#include "flashloom/core/tensor_view.h"
#include "flashloom/io/gguf_model.h"
#include "flashloom/io/model_config.h"

namespace flashloom {

/// A stored tensor, by its Hugging Face name ("model.layers.0.self_attn.q_proj.weight").
struct ModelTensor {
  std::string name;
  std::vector<int64_t> shape;  // as Hugging Face has it: a linear's weight is (out, in)
  std::string stored_type;     // "BF16", "Q4_1", …
  int64_t stored_bytes = 0;
};

/// MODEL, whichever form it has: a Hugging Face directory (config.json and safetensors, one file or
/// sharded) or a GGUF file. One config, one set of tensor names, one way to read them. Files are
/// memory-mapped; nothing is converted before it is asked for. Const calls may run in parallel.
class ModelFiles {
 public:
  enum class Format : uint8_t { hugging_face, gguf };

  /// Throws IoError naming file and place for anything missing, malformed or not supported.
  static ModelFiles open(const std::string& path);

  ModelFiles(ModelFiles&&) noexcept;
  ModelFiles& operator=(ModelFiles&&) noexcept;
  ~ModelFiles();

  Format format() const;
  const std::string& path() const;
  const ModelConfig& config() const;

  /// In the order of the files. Tensors that have no Hugging Face name keep the file's.
  const std::vector<ModelTensor>& tensors() const;

  /// Null if there is none of this name.
  const ModelTensor* find(std::string_view name) const;

  /// Reads a tensor into `out` (f32, bf16 or f16; rows may be strided, the last dimension not),
  /// converting and dequantising as needed; rows are converted in parallel. Throws IoError naming
  /// the tensor if it is missing, its shape is not out's, its type cannot be decoded, or, with
  /// `require_finite`, it holds a NaN or an infinity.
  void read_into(std::string_view name, TensorView out, bool require_finite = false) const;

  /// The blocks of a quantised matrix; null if there is no such tensor or it holds plain numbers.
  const BlockFormat* block_format(std::string_view name) const;

  /// Copies a quantised matrix as it is stored, its rows in Hugging Face's order; `out` has its
  /// size. Throws IoError as read_into() does, finiteness required.
  void read_blocks(std::string_view name, const BlockMatrix& shape, std::byte* out) const;

  /// Null for a Hugging Face directory, whose tokenizer is in files of its own.
  const StoredVocabulary* vocabulary() const;

  /// What else the file says about itself, for `inspect`: GGUF metadata (arrays as their sizes) or
  /// the safetensors metadata.
  const std::vector<std::pair<std::string, std::string>>& metadata() const;

 private:
  struct Implementation;

  explicit ModelFiles(std::unique_ptr<Implementation> implementation);

  std::unique_ptr<Implementation> implementation_;
};

}  // namespace flashloom
