#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "flashloom/core/tensor_view.h"
#include "flashloom/io/mapped_file.h"

namespace flashloom {

/// A tensor inside a mapped safetensors file.
struct SafetensorsTensor {
  std::string name;
  std::string dtype;  // the format's name: "F32", "BF16", "F8_E4M3", …
  std::vector<int64_t> shape;
  std::span<const std::byte> bytes;  // in the map, at any alignment
};

/// The DType of a safetensors name; none for those we have no element type for ("BOOL", "I16", …).
std::optional<DType> safetensors_dtype(std::string_view name);

/// The safetensors name of a DType.
std::string_view safetensors_dtype_name(DType dtype);

/// A safetensors file (8 bytes of header length, JSON header, data), memory-mapped. The header is
/// checked whole on opening: offsets tile the data without overlap or hole, every shape times its
/// dtype is the bytes it claims. Throws IoError naming file and tensor otherwise.
class SafetensorsFile {
 public:
  explicit SafetensorsFile(std::string path);

  const std::string& path() const { return file_.path(); }

  /// In the order of their data.
  const std::vector<SafetensorsTensor>& tensors() const { return tensors_; }

  /// Null if there is none of this name.
  const SafetensorsTensor* find(std::string_view name) const;

  /// The tensor where it lies. Throws IoError if it is missing, has no DType, more than kMaxRank
  /// dimensions, or is not aligned to its elements (read `bytes` by copying then).
  ConstTensorView view(std::string_view name) const;

  /// The header's "__metadata__".
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  MappedFile file_;
  std::vector<SafetensorsTensor> tensors_;
  std::unordered_map<std::string_view, size_t> by_name_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace flashloom
