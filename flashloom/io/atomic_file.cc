#include "flashloom/io/atomic_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <system_error>
#include <utility>

#include "flashloom/core/error.h"

namespace flashloom {
namespace {

[[noreturn]] void fail(const std::string& path, std::string_view what, int code) {
  throw IoError(path, what, std::generic_category().message(code));
}

// The rename itself lives in the directory, which has to reach the disk too.
void sync_directory(const std::string& path) {
  const std::string parent = std::filesystem::path(path).parent_path().string();
  const std::string directory = parent.empty() ? std::string(".") : parent;
  const int descriptor = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) {
    fail(directory, "open", errno);
  }
  const int result = fsync(descriptor);
  const int code = errno;
  close(descriptor);
  if (result != 0 && code != EINVAL) {  // some network file systems have no fsync of directories
    fail(directory, "fsync", code);
  }
}

}  // namespace

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
  // A killed run may have left its temporary file, even under our process id: take the next name.
  constexpr int kAttempts = 100;
  for (int attempt = 0; attempt < kAttempts && descriptor_ < 0; ++attempt) {
    temporary_ = fmt::format("{}.partial-{}-{}", path_, getpid(), attempt);
    descriptor_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (descriptor_ < 0 && errno != EEXIST) {
      break;
    }
  }
  if (descriptor_ < 0) {
    fail(path_, "create", errno);
  }
}

AtomicFile::~AtomicFile() {
  discard();
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::move(other.temporary_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      end_(other.end_) {}

AtomicFile& AtomicFile::operator=(AtomicFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(temporary_, other.temporary_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(end_, other.end_);
  return *this;
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  write_at(end_, bytes);
  end_ += static_cast<int64_t>(bytes.size());
}

void AtomicFile::write(std::string_view text) {
  write(std::as_bytes(std::span(text)));
}

void AtomicFile::write_at(int64_t offset, std::span<const std::byte> bytes) {
  if (descriptor_ < 0) {
    throw IoError(path_, "write", "already committed");
  }
  while (!bytes.empty()) {
    const ssize_t written = pwrite(descriptor_, bytes.data(), bytes.size(), offset);
    if (written < 0 && errno == EINTR) {
      continue;
    }
    if (written <= 0) {
      fail(path_, fmt::format("write at byte {}", offset), written < 0 ? errno : ENOSPC);
    }
    bytes = bytes.subspan(static_cast<size_t>(written));
    offset += written;
  }
}

void AtomicFile::commit() {
  if (descriptor_ < 0) {
    throw IoError(path_, "commit", "already committed");
  }
  if (fsync(descriptor_) != 0) {
    fail(path_, "fsync", errno);
  }
  // close() is where some file systems report a full disk.
  if (close(std::exchange(descriptor_, -1)) != 0) {
    const int code = errno;
    unlink(temporary_.c_str());
    fail(path_, "close", code);
  }
  try {
    rename_durably(temporary_, path_);
  } catch (...) {
    unlink(temporary_.c_str());
    throw;
  }
}

void AtomicFile::discard() noexcept {
  if (descriptor_ >= 0) {
    close(std::exchange(descriptor_, -1));
    unlink(temporary_.c_str());
  }
}

void rename_durably(const std::string& from, const std::string& to) {
  if (rename(from.c_str(), to.c_str()) != 0) {
    fail(to, "rename", errno);
  }
  sync_directory(to);
}

void make_directory(const std::string& directory) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  if (error) {
    throw IoError(directory, "", "could not be made: " + error.message());
  }
}

void write_file_atomically(const std::string& path, std::string_view content) {
  AtomicFile file(path);
  file.write(content);
  file.commit();
}

}  // namespace flashloom
