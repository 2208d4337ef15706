#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace flashloom {

/// Bytes that are appended once and read often. Up to `memory_bytes` of them lie in memory; beyond
/// that, all but the last megabyte lies in a file without a name, which the kernel removes with the
/// process and whose pages it drops when memory is short.
class SpilledBytes {
 public:
  /// Everything stays in memory.
  SpilledBytes() = default;
  /// The file is made in `directory`, once it is needed.
  SpilledBytes(std::string directory, int64_t memory_bytes);
  ~SpilledBytes();
  SpilledBytes(SpilledBytes&& other) noexcept;
  SpilledBytes& operator=(SpilledBytes&& other) noexcept;

  /// Throws IoError naming the directory, for a full disk too.
  void append(std::span<const std::byte> bytes);

  /// Bytes that one append() gave, or a part of them. Valid until the next append().
  std::span<const std::byte> part(int64_t offset, int64_t size) const;

  int64_t size() const { return spilled_ + static_cast<int64_t>(tail_.size()); }

  /// How many lie in the file.
  int64_t spilled() const { return spilled_; }

 private:
  void spill();
  [[noreturn]] void fail(const char* what) const;

  std::string directory_;
  int64_t memory_bytes_ = INT64_MAX;
  std::vector<std::byte> tail_;  // what is not in the file
  int descriptor_ = -1;
  int64_t spilled_ = 0;
  std::byte* map_ = nullptr;
};

}  // namespace flashloom
