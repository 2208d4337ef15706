#pragma once

#include <string>
#include <vector>

#include "flashloom/io/safetensors.h"

namespace flashloom {

/// The weights of a Hugging Face directory: model.safetensors, or the shards that
/// model.safetensors.index.json names.
class SafetensorsModel {
 public:
  /// Throws IoError, also when the index names a tensor that its shard does not have.
  explicit SafetensorsModel(const std::string& directory);

  const std::vector<SafetensorsFile>& files() const { return files_; }

  /// Of all files together.
  const std::vector<const SafetensorsTensor*>& tensors() const { return tensors_; }

 private:
  std::vector<SafetensorsFile> files_;
  std::vector<const SafetensorsTensor*> tensors_;
};

}  // namespace flashloom
