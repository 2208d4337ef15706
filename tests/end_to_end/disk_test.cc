// A run on a disk that is full, or that takes nothing at all.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "flashloom/io/temporary_directory_for_test.h"
#include "tests/end_to_end/program_for_test.h"

namespace flashloom {
namespace {

using testing::HasSubstr;

class Disk : public ProgramTest {
 protected:
  static void SetUpTestSuite() {
    make_folder();
    write_file_atomically(path("train.jsonl"), prompt_rows(40));
    ASSERT_EQ(run(training(path("whole"), kSteps)).code, 0);
  }

  static std::string training(const std::string& output, int steps) {
    return fmt::format(
        "finetune --model {} --data {} --output {} --batch-tokens 128 --lr 1e-2 --save-steps 2 "
        "--steps {} ",
        path("model"), path("train.jsonl"), output, steps);
  }

  static std::string weights(const std::string& output) {
    return read_for_test(output + "/adapter_model.safetensors");
  }

  static constexpr int kSteps = 10;
};

// What stands in a folder, two levels deep.
std::vector<std::string> names_in(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  return names;
}

TEST_F(Disk, AFileThatMayNotGrowEndsTheRunWithAnErrorAndLosesNothing) {
  const std::string output = path("limited");
  ASSERT_EQ(run(training(output, 4)).code, 0);
  // 100 kB a file: the adapter fits, the optimizer's state of 290 kB does not.
  const ProgramResult full = run(training(output, kSteps), "ulimit -f 200;");
  EXPECT_EQ(full.code, 1) << full.err;
  EXPECT_THAT(full.err, HasSubstr("training_state.safetensors"));
  EXPECT_THAT(full.err, HasSubstr("File too large"));
  EXPECT_THAT(names_in(output), testing::IsSupersetOf({"checkpoint-2", "checkpoint-4"}));
  EXPECT_THAT(names_in(output), testing::Not(testing::Contains(HasSubstr("partial"))));
  const ProgramResult result = run(training(output, kSteps));
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("going on after step 4"));
  // Its schedule was another for the first four steps, so the bits are those of a run like it.
  const std::string other = path("unlimited");
  ASSERT_EQ(run(training(other, 4)).code, 0);
  ASSERT_EQ(run(training(other, kSteps)).code, 0);
  EXPECT_TRUE(weights(output) == weights(other));
}

TEST_F(Disk, AFullDiskEndsTheRunWithAnErrorAndLosesNothing) {
  // Two checkpoints of 420 kB fit, a third does not; then the disk grows, and the same command goes
  // on.
  const std::string disk = path("disk");
  std::filesystem::create_directories(disk);
  const std::string mount = "mount -t tmpfs -o size=1200k none " + disk;
  if (std::system(("unshare -rm " + mount + " >/dev/null 2>&1").c_str()) != 0) {
    GTEST_SKIP() << "no small disk can be mounted here";
  }
  const std::string script = fmt::format(
      R"(unshare -rm sh -c '{} && ! "$@" && mount -o remount,size=64m {} && "$@" && cp -r {}/run {}' sh)",
      mount, disk, disk, path("from_disk"));
  const ProgramResult result = run(training(disk + "/run", kSteps), script);
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("No space left on device"));
  EXPECT_THAT(result.err, HasSubstr("going on after step 4"));
  EXPECT_TRUE(weights(path("from_disk")) == weights(path("whole")));
}

TEST_F(Disk, AnUnwritableDirectoryIsNamed) {
  for (const std::string& output : {std::string("/proc/flashloom"), path("train.jsonl") + "/x"}) {
    const ProgramResult result = run(training(output, 2));
    EXPECT_EQ(result.code, 1);
    EXPECT_THAT(result.err, HasSubstr(output));
  }
}

TEST_F(Disk, TwoRunsOnOneDirectoryAreOneRunAndAnError) {
  const std::string output = path("twice");
  const std::string both = fmt::format(
      "sh -c '\"$@\" 2>{} & first=$!; sleep 0.4; \"$@\" 2>{}; second=$?; wait $first; "
      "echo first $? second $second' sh",
      path("first.txt"), path("second.txt"));
  const ProgramResult result = run(training(output, 60), both);
  // Whichever came second: one of them did the run, the other said why not.
  const std::string errors = read_for_test(path("first.txt")) + read_for_test(path("second.txt"));
  if (result.out == "first 0 second 0\n") {
    GTEST_SKIP() << "the first run ended before the second began";
  }
  EXPECT_THAT(result.out, testing::AnyOf("first 0 second 1\n", "first 1 second 0\n"));
  EXPECT_THAT(errors, HasSubstr("is writing to this directory"));
  EXPECT_TRUE(std::filesystem::exists(output + "/checkpoint-60"));
}

}  // namespace
}  // namespace flashloom
