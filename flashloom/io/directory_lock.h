#pragma once

#include <string>

namespace flashloom {

/// Keeps a second process out of a directory for as long as it lives; the kernel lets go of the
/// lock when the process ends, however it ends.
class DirectoryLock {
 public:
  /// Takes `directory`/.lock. Throws IoError naming the process that holds it.
  explicit DirectoryLock(const std::string& directory);
  ~DirectoryLock();
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;

 private:
  int descriptor_ = -1;
};

}  // namespace flashloom
