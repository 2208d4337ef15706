#include "flashloom/io/write_all.h"

#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "flashloom/core/error.h"

namespace flashloom {

void write_all(int descriptor, const std::string& path, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) {
      continue;
    }
    if (written <= 0) {
      throw IoError(path, "append", std::generic_category().message(written < 0 ? errno : ENOSPC));
    }
    bytes.remove_prefix(static_cast<size_t>(written));
  }
}

}  // namespace flashloom
