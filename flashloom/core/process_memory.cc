#include "flashloom/core/process_memory.h"

#include <fstream>
#include <string>

namespace flashloom {

int64_t anonymous_memory_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("RssAnon:")) {
      return std::stoll(line.substr(8)) * 1024;
    }
  }
  return 0;
}

}  // namespace flashloom
