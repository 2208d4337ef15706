#include <gmock/gmock.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/io/atomic_file.h"
#include "flashloom/io/mapped_file.h"
#include "flashloom/io/metric_log.h"
#include "flashloom/io/temporary_directory_for_test.h"

namespace flashloom {
namespace {

std::string content_of(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

int64_t files_in(const std::string& path) {
  return std::distance(std::filesystem::directory_iterator(path), {});
}

// For as long as it lives, no file of this process may grow beyond `bytes`: what a full disk does.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    getrlimit(RLIMIT_FSIZE, &before_);
    handler_ = signal(SIGXFSZ, SIG_IGN);
    const rlimit limit = {bytes, before_.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
  }

  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_ = {};
  void (*handler_)(int) = nullptr;
};

TEST(MappedFile, ShowsTheBytesOfAFile) {
  const TemporaryDirectory directory;
  const std::string path = directory / "file";
  write_file_atomically(path, "hello");
  MappedFile file(path);
  EXPECT_EQ(file.text(), "hello");
  const MappedFile moved(std::move(file));
  EXPECT_EQ(moved.text(), "hello");
  write_file_atomically(path, "");
  EXPECT_EQ(MappedFile(path).bytes().size(), 0u);
}

TEST(MappedFile, RefusesWhatIsNoRegularFile) {
  const TemporaryDirectory directory;
  EXPECT_THROW(MappedFile(directory / "absent"), IoError);
  EXPECT_THROW(MappedFile(directory.path()), IoError);
  EXPECT_THROW(MappedFile("/dev/zero"), IoError);
  const std::string pipe = directory / "pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_THROW(MappedFile{pipe}, IoError);
}

TEST(AtomicFile, AppearsWholeOnCommitOnly) {
  const TemporaryDirectory directory;
  const std::string path = directory / "file";
  {
    AtomicFile file(path);
    file.write("head ");
    file.write("tail");
    EXPECT_FALSE(std::filesystem::exists(path));
    file.write_at(0, std::as_bytes(std::span("HE", 2)));
    file.commit();
    EXPECT_EQ(content_of(path), "HEad tail");
    EXPECT_THROW(file.write("more"), IoError);
    EXPECT_THROW(file.commit(), IoError);
  }
  {
    AtomicFile file(path);
    file.write("something else");
  }
  EXPECT_EQ(content_of(path), "HEad tail");
  EXPECT_EQ(files_in(directory.path()), 1);
}

TEST(AtomicFile, LeavesTheOldFileWhenTheDiskIsFull) {
  const TemporaryDirectory directory;
  const std::string path = directory / "file";
  write_file_atomically(path, "old");
  {
    const FileSizeLimit limit(1000);
    EXPECT_THROW(write_file_atomically(path, std::string(5000, 'x')), IoError);
  }
  EXPECT_EQ(content_of(path), "old");
  EXPECT_EQ(files_in(directory.path()), 1);
}

TEST(AtomicFile, NamesThePathItCannotCreate) {
  EXPECT_THAT([] { write_file_atomically("/no/such/directory/file", "x"); },
              testing::ThrowsMessage<IoError>(testing::HasSubstr("/no/such/directory/file")));
}

TEST(AtomicFile, LeavesNothingWhenTheTargetIsADirectory) {
  const TemporaryDirectory directory;
  std::filesystem::create_directory(directory / "taken");
  EXPECT_THROW(write_file_atomically(directory / "taken", "x"), IoError);
  EXPECT_EQ(files_in(directory.path()), 1);
}

TEST(MetricLog, AppendsOneObjectALine) {
  const TemporaryDirectory directory;
  const std::string path = directory / "metrics.jsonl";
  {
    MetricLog log(path);
    log.append({{"step", int64_t{1}}, {"loss", 2.5}, {"note", "a \"b\"\n"}, {"best", true}});
    EXPECT_EQ(content_of(path),
              "{\"step\":1,\"loss\":2.5,\"note\":\"a \\\"b\\\"\\n\",\"best\":true}\n");
  }
  MetricLog log(path);
  log.append({{"loss", std::numeric_limits<double>::quiet_NaN()},
              {"norm", -std::numeric_limits<double>::infinity()}});
  EXPECT_THAT(content_of(path), testing::EndsWith("\n{\"loss\":\"nan\",\"norm\":\"-inf\"}\n"));
}

TEST(MetricLog, CutsAnUnfinishedLine) {
  const TemporaryDirectory directory;
  const std::string path = directory / "metrics.jsonl";
  for (const size_t torn : {size_t{3}, size_t{4096}, size_t{10000}}) {
    write_file_atomically(path, "{\"a\":1}\n" + std::string(torn, 'x'));
    MetricLog(path).append({{"b", int64_t{2}}});
    EXPECT_EQ(content_of(path), "{\"a\":1}\n{\"b\":2}\n");
    write_file_atomically(path, std::string(torn, 'x'));
    MetricLog(path).append({{"b", int64_t{2}}});
    EXPECT_EQ(content_of(path), "{\"b\":2}\n");
  }
}

TEST(MetricLog, SaysThatTheDiskIsFull) {
  const TemporaryDirectory directory;
  MetricLog log(directory / "metrics.jsonl");
  const FileSizeLimit limit(10);
  EXPECT_THROW(log.append({{"a long enough name", 1.0}}), IoError);
}

}  // namespace
}  // namespace flashloom
