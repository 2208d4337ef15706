#include "flashloom/io/checksum.h"

#include <gtest/gtest.h>

#include <string_view>

#include "flashloom/core/error.h"

namespace flashloom {
namespace {

std::span<const std::byte> bytes(std::string_view text) {
  return std::as_bytes(std::span(text));
}

TEST(Checksum, IsXxh3OfTheBytes) {
  // Published for the empty input (xxHash's own test vectors, seed 0).
  EXPECT_EQ(checksum({}), "99aa06d3014798d86001c324468d497f");
}

TEST(Checksum, DoesNotDependOnHowTheBytesArrive) {
  const std::string text(10000, 'x');
  Checksum sum;
  for (size_t begin = 0; begin < text.size(); begin += 7) {
    sum.add(bytes(std::string_view(text).substr(begin, 7)));
  }
  EXPECT_EQ(sum.hex(), checksum(bytes(text)));
}

TEST(Checksum, SeesOneBit) {
  std::string text(10000, 'x');
  const std::string before = checksum(bytes(text));
  text[7777] ^= 1;
  EXPECT_NE(checksum(bytes(text)), before);
}

TEST(Checksum, OfAMissingFileIsAnError) {
  EXPECT_THROW(file_checksum("/nonexistent/file"), IoError);
}

}  // namespace
}  // namespace flashloom
