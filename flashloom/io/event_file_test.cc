#include "flashloom/io/event_file.h"

#include <gmock/gmock.h>

#include <bit>
#include <cstdint>
#include <filesystem>
#include <iterator>
#include <limits>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/io/atomic_file.h"
#include "flashloom/io/crc32c.h"
#include "flashloom/io/temporary_directory_for_test.h"

namespace flashloom {
namespace {

using std::string_literals::operator""s;

uint64_t little_endian(std::string_view bytes) {
  uint64_t value = 0;
  for (size_t i = bytes.size(); i-- > 0;) {
    value = value << 8 | static_cast<uint8_t>(bytes[i]);
  }
  return value;
}

// The data of each record; fails on a wrong length or sum.
std::vector<std::string> records_of(const std::string& path) {
  const std::string bytes = read_for_test(path);
  std::vector<std::string> records;
  std::string_view rest = bytes;
  while (!rest.empty()) {
    const std::string_view header = rest.substr(0, 8);
    const uint64_t length = little_endian(header);
    EXPECT_EQ(little_endian(rest.substr(8, 4)), masked_crc32c(header));
    EXPECT_GE(rest.size(), length + 16);
    records.emplace_back(rest.substr(12, length));
    EXPECT_EQ(little_endian(rest.substr(12 + length, 4)), masked_crc32c(records.back()));
    rest.remove_prefix(length + 16);
  }
  return records;
}

// A wall time as a field of an event.
std::string wall_time(double value) {
  const auto bits = std::bit_cast<uint64_t>(value);
  std::string bytes = "\x09";
  for (int i = 0; i < 8; ++i) {
    bytes += static_cast<char>(bits >> (8 * i) & 0xff);
  }
  return bytes;
}

TEST(Crc32c, HasThePublishedValues) {
  // RFC 3720, appendix B.4, and the check value of the CRC catalogue.
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  std::string ascending;
  for (int i = 0; i < 32; ++i) {
    ascending += static_cast<char>(i);
  }
  EXPECT_EQ(crc32c(ascending), 0x46dd794eu);
  EXPECT_EQ(crc32c(""), 0u);
  EXPECT_EQ(masked_crc32c(""), 0xa282ead8u);
}

TEST(EventFile, WritesEventsByteByByte) {
  const TemporaryDirectory directory;
  const EventFile file(directory / "events", 7, 1.5);
  const EventFile second(directory / "events", 7, 1.5);  // of the same moment: another name
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(directory / "events"), {}), 2);
  EXPECT_THAT(std::filesystem::path(file.path()).filename().string(),
              testing::StartsWith("events.out.tfevents.0000000001."));
  const std::vector<std::string> records = records_of(file.path());
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[0], wall_time(1.5) + "\x1a\x0d" + "brain.Event:2");
  EXPECT_EQ(records[1], wall_time(1.5) + "\x10\x07\x3a\x02\x08\x01");
}

TEST(EventFile, WritesScalarsOfAStepAsOneEvent) {
  const TemporaryDirectory directory;
  EventFile file(directory / "events", 1, 0);
  file.add(300, 2.25, {{"loss/train", 0.5}, {"x", -2}});
  const std::vector<std::string> records = records_of(file.path());
  ASSERT_EQ(records.size(), 3u);
  const std::string loss = "\x0a\x0aloss/train\x15\x00\x00\x00\x3f"s;
  const std::string x = "\x0a\x01x\x15\x00\x00\x00\xc0"s;
  const std::string summary = "\x0a\x11" + loss + "\x0a\x08" + x;
  // 300 takes two bytes as a varint: 0xac 0x02.
  EXPECT_EQ(records[2], wall_time(2.25) + "\x10\xac\x02\x2a\x1d" + summary);
}

TEST(EventFile, KeepsValuesThatAreNotFiniteAndLongEvents) {
  const TemporaryDirectory directory;
  EventFile file(directory / "events", 1, 0);
  const std::string tag(1000, 't');
  file.add(1, 0, {{tag, std::numeric_limits<double>::infinity()}});
  const std::string record = records_of(file.path()).back();
  // Lengths beyond 127: 1,000 = 0xe8 0x07.
  EXPECT_NE(record.find("\x0a\xe8\x07" + tag + "\x15\x00\x00\x80\x7f"s), std::string::npos);
}

TEST(EventFile, SaysWhichFileItCouldNotMake) {
  const TemporaryDirectory directory;
  write_file_atomically(directory / "file", "");
  EXPECT_THAT([&] { EventFile(directory / "file", 1, 0); },
              testing::ThrowsMessage<IoError>(testing::HasSubstr(directory / "file")));
}

}  // namespace
}  // namespace flashloom
