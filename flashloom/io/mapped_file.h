#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

namespace flashloom {

/// A whole file mapped read-only. Pages are read when touched; the file must not be truncated while
/// it is mapped (the kernel would then raise SIGBUS, as for any mapping).
class MappedFile {
 public:
  /// Throws IoError if `path` cannot be opened, is not a regular file, or cannot be mapped.
  explicit MappedFile(std::string path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;

  const std::string& path() const { return path_; }

  std::span<const std::byte> bytes() const { return {data_, size_}; }

  /// The same bytes as text.
  std::string_view text() const;

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace flashloom
