#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace flashloom {

/// A file that appears whole or not at all: bytes go to a temporary neighbour, commit() forces them
/// to the disk and renames it over `path`. Until then, and after any failure, what stood at `path`
/// still stands. Every function throws IoError (a full disk included).
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  /// Removes the temporary file unless committed.
  ~AtomicFile();
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&& other) noexcept;

  /// At the end of what write() has written so far.
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);

  /// At a place of its own; does not move the end of write().
  void write_at(int64_t offset, std::span<const std::byte> bytes);

  /// fsync, rename, fsync of the directory.
  void commit();

  const std::string& path() const { return path_; }

 private:
  void discard() noexcept;

  std::string path_;
  std::string temporary_;
  int descriptor_ = -1;
  int64_t end_ = 0;
};

/// Renames a file or directory so that it survives a power cut, given that its content does.
void rename_durably(const std::string& from, const std::string& to);

/// Makes a directory and its parents; throws IoError.
void make_directory(const std::string& directory);

/// The whole content at once.
void write_file_atomically(const std::string& path, std::string_view content);

}  // namespace flashloom
