#include "flashloom/io/directory_lock.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <system_error>

#include "flashloom/core/error.h"

namespace flashloom {
namespace {

std::string holder(int descriptor) {
  std::array<char, 32> text = {};
  const ssize_t count = pread(descriptor, text.data(), text.size(), 0);
  const std::string process(text.data(), count > 0 ? static_cast<size_t>(count) : 0);
  return process.empty() ? "another process" : "process " + process;
}

}  // namespace

DirectoryLock::DirectoryLock(const std::string& directory) {
  const std::string path = directory + "/.lock";
  descriptor_ = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (descriptor_ < 0) {
    throw IoError(path, "open", std::generic_category().message(errno));
  }
  if (flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
    const int code = errno;
    const std::string what = code == EWOULDBLOCK
                                 ? holder(descriptor_) + " is writing to this directory"
                                 : std::generic_category().message(code);
    close(descriptor_);
    throw IoError(directory, "", what);
  }
  // For the message above alone; a full disk must not keep a run from starting.
  const std::string process = fmt::format("{}", getpid());
  if (ftruncate(descriptor_, 0) != 0 ||
      pwrite(descriptor_, process.data(), process.size(), 0) < 0) {
    return;
  }
}

DirectoryLock::~DirectoryLock() {
  close(descriptor_);
}

}  // namespace flashloom
