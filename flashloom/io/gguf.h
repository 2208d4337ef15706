#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "flashloom/io/gguf_types.h"
#include "flashloom/io/gguf_value.h"
#include "flashloom/io/mapped_file.h"

namespace flashloom {

struct GgufTensor {
  std::string name;
  GgmlTypeInfo type = {};
  std::vector<int64_t> shape;  // slowest dimension first, the reverse of the file's order
  std::span<const std::byte> bytes;
};

/// A GGUF file, version 2 or 3, little endian, memory-mapped. Everything before the data is parsed
/// and checked on opening: counts and lengths against the bytes that are left, types, UTF-8, names
/// given twice, offsets aligned, inside the file and not overlapping. Throws IoError naming file
/// and place.
class GgufFile {
 public:
  explicit GgufFile(std::string path);

  /// True if the file begins with GGUF's four bytes.
  static bool has_magic(const MappedFile& file);

  const std::string& path() const { return file_.path(); }

  /// In the file's order.
  const std::vector<std::pair<std::string, GgufValue>>& metadata() const { return metadata_; }

  const std::vector<GgufTensor>& tensors() const { return tensors_; }

  /// Null if there is none of this name.
  const GgufValue* find(std::string_view key) const;
  const GgufTensor* find_tensor(std::string_view name) const;

  /// Typed access: none if the key is absent, IoError if its value is of another kind. A float32 is
  /// returned as the shortest decimal that it stands for (1e-05, not 9.99999975e-06).
  std::optional<int64_t> integer(std::string_view key) const;
  std::optional<double> number(std::string_view key) const;
  std::optional<bool> boolean(std::string_view key) const;
  std::optional<std::string_view> text(std::string_view key) const;
  const GgufArray* array(std::string_view key) const;

 private:
  [[noreturn]] void wrong_type(std::string_view key, std::string_view expected) const;

  MappedFile file_;
  std::vector<std::pair<std::string, GgufValue>> metadata_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string_view, size_t> metadata_by_key_;
  std::unordered_map<std::string_view, size_t> tensor_by_name_;
};

}  // namespace flashloom
