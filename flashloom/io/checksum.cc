#include "flashloom/io/checksum.h"

#include <fmt/format.h>
#include <xxhash.h>

#include <new>

#include "flashloom/io/mapped_file.h"

namespace flashloom {

Checksum::Checksum() : state_(XXH3_createState()) {
  if (state_ == nullptr) {
    throw std::bad_alloc();
  }
  XXH3_128bits_reset(state_);
}

Checksum::~Checksum() {
  XXH3_freeState(state_);
}

void Checksum::add(std::span<const std::byte> bytes) {
  XXH3_128bits_update(state_, bytes.data(), bytes.size());
}

std::string Checksum::hex() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(state_);
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

std::string checksum(std::span<const std::byte> bytes) {
  Checksum sum;
  sum.add(bytes);
  return sum.hex();
}

std::string file_checksum(const std::string& path) {
  return checksum(MappedFile(path).bytes());
}

}  // namespace flashloom
