#pragma once

#include <string>
#include <string_view>

#include "flashloom/io/temporary_directory_for_test.h"

namespace flashloom::fuzz {

/// A file for readers that take a path; made anew for each input, in memory if TMPDIR lies there.
class FuzzFile {
 public:
  explicit FuzzFile(std::string_view name) : path_(folder_ / std::string(name)) {}

  const std::string& write(std::string_view bytes) const {
    overwrite_for_test(path_, bytes);
    return path_;
  }

 private:
  TemporaryDirectory folder_;
  std::string path_;
};

}  // namespace flashloom::fuzz
