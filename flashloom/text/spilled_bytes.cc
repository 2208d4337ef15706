#include "flashloom/text/spilled_bytes.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "flashloom/core/error.h"

namespace flashloom {
namespace {

// Written at once, so that a file costs no system call a document.
constexpr int64_t kBlock = 1 << 20;

}  // namespace

SpilledBytes::SpilledBytes(std::string directory, int64_t memory_bytes)
    : directory_(std::move(directory)), memory_bytes_(memory_bytes) {}

SpilledBytes::~SpilledBytes() {
  if (map_ != nullptr) {
    munmap(map_, static_cast<size_t>(spilled_));
  }
  if (descriptor_ >= 0) {
    close(descriptor_);
  }
}

SpilledBytes::SpilledBytes(SpilledBytes&& other) noexcept {
  *this = std::move(other);
}

SpilledBytes& SpilledBytes::operator=(SpilledBytes&& other) noexcept {
  std::swap(directory_, other.directory_);
  std::swap(memory_bytes_, other.memory_bytes_);
  std::swap(tail_, other.tail_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(spilled_, other.spilled_);
  std::swap(map_, other.map_);
  return *this;
}

void SpilledBytes::fail(const char* what) const {
  throw IoError(directory_, what, std::strerror(errno));
}

void SpilledBytes::append(std::span<const std::byte> bytes) {
  // What one call appends is never parted.
  const int64_t most = spilled_ > 0 ? kBlock : memory_bytes_;
  if (!tail_.empty() && static_cast<int64_t>(tail_.size() + bytes.size()) > most) {
    spill();
  }
  tail_.insert(tail_.end(), bytes.begin(), bytes.end());
}

void SpilledBytes::spill() {
  constexpr const char* kWhat = "a temporary file for the tokenized data";
  if (descriptor_ < 0) {
    descriptor_ = open(directory_.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    if (descriptor_ < 0) {  // some file systems know no files without a name
      std::string name = directory_ + "/.tokens-XXXXXX";
      descriptor_ = mkostemp(name.data(), O_CLOEXEC);
      if (descriptor_ < 0) {
        fail(kWhat);
      }
      unlink(name.c_str());
    }
  }
  int64_t end = spilled_;
  for (std::span<const std::byte> rest = tail_; !rest.empty();) {
    const ssize_t count = pwrite(descriptor_, rest.data(), rest.size(), end);
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count <= 0) {
      errno = count == 0 ? ENOSPC : errno;
      fail(kWhat);
    }
    rest = rest.subspan(static_cast<size_t>(count));
    end += count;
  }
  void* map =
      map_ == nullptr
          ? mmap(nullptr, static_cast<size_t>(end), PROT_READ, MAP_SHARED, descriptor_, 0)
          : mremap(map_, static_cast<size_t>(spilled_), static_cast<size_t>(end), MREMAP_MAYMOVE);
  if (map == MAP_FAILED) {
    fail(kWhat);
  }
  map_ = static_cast<std::byte*>(map);
  spilled_ = end;
  tail_.clear();
  if (tail_.capacity() > 2 * kBlock) {
    std::vector<std::byte>().swap(tail_);
  }
}

std::span<const std::byte> SpilledBytes::part(int64_t offset, int64_t size) const {
  const std::byte* first = offset < spilled_ ? map_ + offset : tail_.data() + (offset - spilled_);
  return {first, static_cast<size_t>(size)};
}

}  // namespace flashloom
