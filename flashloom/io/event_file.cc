#include "flashloom/io/event_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "flashloom/core/error.h"
#include "flashloom/io/atomic_file.h"
#include "flashloom/io/crc32c.h"
#include "flashloom/io/write_all.h"

namespace flashloom {
namespace {

// Protocol buffers, as far as events need them: a field is (number << 3 | wire type), then its
// value (developers.google.com/protocol-buffers/docs/encoding).
class Message {
 public:
  void add_double(uint32_t field, double value) {
    key(field, 1);
    fixed(std::bit_cast<uint64_t>(value));
  }

  void add_float(uint32_t field, float value) {
    key(field, 5);
    fixed(std::bit_cast<uint32_t>(value));
  }

  void add_integer(uint32_t field, int64_t value) {
    key(field, 0);
    varint(static_cast<uint64_t>(value));
  }

  void add_bytes(uint32_t field, std::string_view value) {
    key(field, 2);
    varint(value.size());
    bytes_ += value;
  }

  // Little endian.
  template <class Word>
  void fixed(Word value) {
    for (size_t i = 0; i < sizeof(Word); ++i) {
      bytes_ += static_cast<char>(value >> (8 * i) & 0xff);
    }
  }

  const std::string& bytes() const { return bytes_; }

 private:
  void key(uint32_t field, uint32_t type) { varint(field << 3 | type); }

  void varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) {
      bytes_ += static_cast<char>(value | 0x80);
    }
    bytes_ += static_cast<char>(value);
  }

  std::string bytes_;
};

// The numbers of event.proto's and summary.proto's fields.
constexpr uint32_t kEventWallTime = 1, kEventStep = 2, kEventFileVersion = 3, kEventSummary = 5,
                   kEventSessionLog = 7;
constexpr uint32_t kSummaryValue = 1, kValueTag = 1, kValueSimple = 2;
constexpr uint32_t kSessionStatus = 1;
constexpr int64_t kSessionStart = 1;

std::string host_name() {
  std::array<char, 256> name = {};
  return gethostname(name.data(), name.size() - 1) == 0 && name[0] != '\0' ? name.data()
                                                                           : "localhost";
}

}  // namespace

EventFile::EventFile(const std::string& directory, int64_t first_step, double wall_time) {
  make_directory(directory);
  // TensorBoard reads a directory's files in the order of their names, so the time comes first.
  const std::string stem = fmt::format("{}/events.out.tfevents.{:010}.{}.{}", directory,
                                       static_cast<int64_t>(wall_time), host_name(), getpid());
  for (int number = 0; descriptor_ < 0; ++number) {
    path_ = fmt::format("{}.{}", stem, number);
    descriptor_ = open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
    if (descriptor_ < 0 && errno != EEXIST) {
      throw IoError(path_, "open", std::generic_category().message(errno));
    }
  }
  Message version;
  version.add_double(kEventWallTime, wall_time);
  version.add_bytes(kEventFileVersion, "brain.Event:2");
  Message session;
  session.add_integer(kSessionStatus, kSessionStart);
  Message start;
  start.add_double(kEventWallTime, wall_time);
  start.add_integer(kEventStep, first_step);
  start.add_bytes(kEventSessionLog, session.bytes());
  try {
    append(version.bytes());
    append(start.bytes());
  } catch (...) {
    close(descriptor_);
    throw;
  }
}

EventFile::~EventFile() {
  close(descriptor_);
}

void EventFile::add(int64_t step, double wall_time, std::span<const EventScalar> scalars) {
  Message summary;
  for (const EventScalar& scalar : scalars) {
    Message value;
    value.add_bytes(kValueTag, scalar.tag);
    value.add_float(kValueSimple, static_cast<float>(scalar.value));
    summary.add_bytes(kSummaryValue, value.bytes());
  }
  Message event;
  event.add_double(kEventWallTime, wall_time);
  event.add_integer(kEventStep, step);
  event.add_bytes(kEventSummary, summary.bytes());
  append(event.bytes());
}

void EventFile::append(std::string_view event) {
  Message length;
  length.fixed(uint64_t{event.size()});
  Message record;
  record.fixed(uint64_t{event.size()});
  record.fixed(masked_crc32c(length.bytes()));
  std::string bytes = record.bytes();
  bytes += event;
  Message sum;
  sum.fixed(masked_crc32c(event));
  write_all(descriptor_, path_, bytes + sum.bytes());
}

}  // namespace flashloom
