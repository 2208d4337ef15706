#include "flashloom/io/directory_lock.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <optional>

#include "flashloom/core/error.h"

namespace flashloom {
namespace {

TEST(DirectoryLock, KeepsASecondOneOutUntilItEnds) {
  const std::string directory = testing::TempDir();
  std::optional<DirectoryLock> first(directory);
  EXPECT_THAT([&] { DirectoryLock second(directory); },
              testing::ThrowsMessage<IoError>(testing::HasSubstr(
                  fmt::format("process {} is writing to this directory", getpid()))));
  first.reset();
  EXPECT_NO_THROW(DirectoryLock third(directory));
}

TEST(DirectoryLock, OfAMissingDirectoryIsAnError) {
  EXPECT_THROW(DirectoryLock("/nonexistent"), IoError);
}

}  // namespace
}  // namespace flashloom
