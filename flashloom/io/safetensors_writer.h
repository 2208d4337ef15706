#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "flashloom/core/tensor_view.h"
#include "flashloom/io/atomic_file.h"

namespace flashloom {

/// What a file will hold, known before the first byte.
struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::f32;
  std::vector<int64_t> shape;
};

/// Writes one safetensors file, tensor by tensor, with no copy of the whole. The file appears at
/// finish(), complete, or not at all. Throws IoError for what the disk refuses and InvalidArgument
/// for tensors that do not match their entries.
class SafetensorsWriter {
 public:
  /// Larger elements come first, so that every tensor is aligned; `metadata` is what
  /// transformers wants to see.
  SafetensorsWriter(const std::string& path, std::vector<SafetensorsEntry> entries,
                    const std::map<std::string, std::string>& metadata = {{"format", "pt"}});

  /// Each tensor once, in any order; contiguous, on the CPU. Floating-point types are converted to
  /// the entry's (f32, bf16, f16).
  void write(std::string_view name, const ConstTensorView& values);

  /// Elements `first` … of a flattened tensor, of its own dtype: a tensor may come in pieces, each
  /// element once.
  void write_part(std::string_view name, int64_t first, const ConstTensorView& values);

  /// Throws InvalidArgument if a tensor was not written, or only in part.
  void finish();

 private:
  struct Slot {
    SafetensorsEntry entry;
    int64_t offset = 0;   // in the file
    int64_t size = 0;     // elements
    int64_t written = 0;  // of them
    bool whole = false;   // by one write()
  };

  Slot& slot_of(std::string_view name);

  AtomicFile file_;
  std::unordered_map<std::string, Slot> slots_;
};

/// Writes the weights of a Hugging Face directory: model.safetensors, or, beyond `max_shard_bytes`,
/// model-00001-of-0000N.safetensors with their index. Stale files of the other form go at finish().
class SafetensorsModelWriter {
 public:
  /// transformers' default: at most 5 GB a file.
  static constexpr int64_t kDefaultShardBytes = 5'000'000'000;

  SafetensorsModelWriter(std::string directory, std::vector<SafetensorsEntry> entries,
                         int64_t max_shard_bytes = kDefaultShardBytes);

  void write(std::string_view name, const ConstTensorView& values);
  void finish();

 private:
  std::string directory_;
  std::vector<std::string> files_;
  std::vector<SafetensorsWriter> shards_;
  std::map<std::string, size_t, std::less<>> shard_of_;
  int64_t total_bytes_ = 0;
};

}  // namespace flashloom
