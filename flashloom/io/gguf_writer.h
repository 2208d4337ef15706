#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flashloom/core/tensor_view.h"
#include "flashloom/io/atomic_file.h"
#include "flashloom/io/gguf_types.h"
#include "flashloom/io/gguf_value.h"

namespace flashloom {

/// The keys of a GGUF file, in the order in which they are added.
class GgufMetadata {
 public:
  void add(std::string_view key, uint32_t value);
  void add(std::string_view key, float value);
  void add(std::string_view key, std::string_view value);

  void add(std::string_view key, const char* value) { add(key, std::string_view(value)); }

  void add(std::string_view key, std::span<const std::string> values);
  void add(std::string_view key, std::span<const int32_t> values);
  /// Not an overload: too much converts to bool.
  void add_flag(std::string_view key, bool value);

  uint64_t count() const { return count_; }

  const std::string& bytes() const { return bytes_; }

 private:
  void begin(std::string_view key, GgufType type);

  uint64_t count_ = 0;
  std::string bytes_;
};

/// What a file will hold, known before the first byte.
struct GgufEntry {
  std::string name;
  GgmlType type = GgmlType::f32;
  std::vector<int64_t> shape;  // slowest dimension first, as in GgufTensor
  /// If not 0, rows are this many heads, and the two halves of each are written interleaved
  /// (permuted_heads).
  int64_t interleaved_heads = 0;
};

/// Writes a GGUF file, version 3, tensor by tensor, with no copy of the whole. The file appears at
/// finish(), complete, or not at all. Throws IoError for what the disk refuses and InvalidArgument
/// for tensors that do not match their entries.
class GgufWriter {
 public:
  GgufWriter(const std::string& path, const GgufMetadata& metadata, std::vector<GgufEntry> entries);

  /// Each tensor once, in any order: f32, contiguous, on the CPU; encoded by gguf_quantize(), rows
  /// in parallel. Throws InvalidArgument naming the tensor if a value is not finite or too large
  /// for f16.
  void write(std::string_view name, const ConstTensorView& values);

  /// Throws InvalidArgument if a tensor was not written.
  void finish();

 private:
  struct Slot {
    GgufEntry entry;
    GgmlTypeInfo type;
    int64_t offset = 0;  // in the file
    bool written = false;
  };

  AtomicFile file_;
  std::map<std::string, Slot, std::less<>> slots_;
};

}  // namespace flashloom
