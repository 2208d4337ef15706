#pragma once

#include <cstddef>
#include <span>
#include <string>

struct XXH3_state_s;

namespace flashloom {

/// XXH3, 128 bits (xxHash): faster than memory, so that whole models can be checked. It finds
/// damage, not forgery.
class Checksum {
 public:
  Checksum();
  ~Checksum();
  Checksum(const Checksum&) = delete;
  Checksum& operator=(const Checksum&) = delete;

  void add(std::span<const std::byte> bytes);

  /// Of all that was added so far, 32 hexadecimal digits.
  std::string hex() const;

 private:
  XXH3_state_s* state_;
};

std::string checksum(std::span<const std::byte> bytes);

/// Of a file's content. Throws IoError.
std::string file_checksum(const std::string& path);

}  // namespace flashloom
