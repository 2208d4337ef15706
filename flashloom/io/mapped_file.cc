#include "flashloom/io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "flashloom/core/error.h"

namespace flashloom {
namespace {

[[noreturn]] void fail(const std::string& path, std::string_view what, int code) {
  throw IoError(path, what, std::generic_category().message(code));
}

}  // namespace

MappedFile::MappedFile(std::string path) : path_(std::move(path)) {
  // O_NONBLOCK: opening a FIFO must not hang; it has no meaning for regular files.
  const int descriptor = open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) {
    fail(path_, "open", errno);
  }
  struct stat status = {};
  if (fstat(descriptor, &status) != 0) {
    const int code = errno;
    close(descriptor);
    fail(path_, "stat", code);
  }
  if (!S_ISREG(status.st_mode)) {
    close(descriptor);
    throw IoError(path_, "", "expected a regular file");
  }
  size_ = static_cast<size_t>(status.st_size);
  if (size_ > 0) {  // mmap refuses an empty range
    void* memory = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, descriptor, 0);
    if (memory == MAP_FAILED) {
      const int code = errno;
      close(descriptor);
      fail(path_, "map", code);
    }
    data_ = static_cast<const std::byte*>(memory);
  }
  close(descriptor);
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) {
    munmap(const_cast<std::byte*>(data_), size_);
  }
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

std::string_view MappedFile::text() const {
  return {reinterpret_cast<const char*>(data_), size_};
}

}  // namespace flashloom
