#include "flashloom/comm/communicator.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <mutex>
#include <numeric>
#include <vector>

#include "flashloom/comm/thread_ranks_for_test.h"
#include "flashloom/core/philox.h"

namespace flashloom {
namespace {

using testing::HasSubstr;

// Numbers whose sum depends on the order of the additions.
std::vector<float> numbers(int rank, int64_t count) {
  RandomSequence random(7 + static_cast<uint64_t>(rank), RandomStream::test);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) {
    value = random.normal() * (random.bits() % 2 == 0 ? 1.0f : 1e6f);
  }
  return values;
}

// The contract's tree, written out for up to five ranks.
float tree(const std::vector<float>& x) {
  switch (x.size()) {
    case 1:
      return x[0];
    case 2:
      return x[0] + x[1];
    case 3:
      return (x[0] + x[1]) + x[2];
    case 4:
      return (x[0] + x[1]) + (x[2] + x[3]);
    default:
      return ((x[0] + x[1]) + (x[2] + x[3])) + x[4];
  }
}

std::vector<float> sums(int ranks, int64_t count) {
  std::vector<std::vector<float>> all;
  for (int r = 0; r < ranks; ++r) {
    all.push_back(numbers(r, count));
  }
  std::vector<float> expected;
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
    std::vector<float> of_ranks;
    for (const auto& values : all) {
      of_ranks.push_back(values[i]);
    }
    expected.push_back(tree(of_ranks));
  }
  return expected;
}

// Everything that the contract promises, on whatever carries the messages.
void check_collectives(Communicator& c) {
  const int n = c.size();
  for (const int64_t part : {int64_t{0}, int64_t{1}, int64_t{1000}, int64_t{40000}}) {
    const std::vector<float> expected = sums(n, n * part);
    std::vector<float> mine = numbers(c.rank(), n * part);

    std::vector<float> all = mine;
    c.all_reduce(TensorView(all.data(), {n * part}));
    EXPECT_TRUE(all == expected) << n << " ranks, " << part;

    std::vector<float> out(static_cast<size_t>(part));
    const int64_t before = c.bytes_sent();
    c.reduce_scatter(TensorView(out.data(), {part}), ConstTensorView(mine.data(), {n, part}));
    EXPECT_EQ(c.bytes_sent() - before, (n - 1) * part * 4);
    EXPECT_TRUE(std::equal(out.begin(), out.end(), expected.begin() + c.rank() * part));

    std::vector<float> gathered(static_cast<size_t>(n * part));
    c.all_gather(TensorView(gathered.data(), {n, part}), ConstTensorView(out.data(), {part}));
    EXPECT_EQ(c.bytes_sent() - before, 2 * (n - 1) * part * 4);
    EXPECT_TRUE(gathered == expected);
  }
  // Sizes that the ranks do not divide.
  std::vector<double> odd(5001, 0.5 + c.rank());
  c.all_reduce(TensorView(odd.data(), {5001}));
  EXPECT_TRUE(odd == std::vector<double>(5001, 0.5 * n + 0.5 * n * (n - 1)));

  for (int root = 0; root < n; ++root) {
    std::vector<int64_t> values(3, c.rank() == root ? 40 + root : -1);
    c.broadcast(TensorView(values.data(), {3}), root);
    EXPECT_THAT(values, testing::Each(40 + root));
  }
  // Round a ring, with messages of their own sizes that must not pass one another.
  if (n > 1) {
    for (int64_t count : {1, 300000, 2}) {
      std::vector<int32_t> sent(static_cast<size_t>(count),
                                c.rank() * 10 + static_cast<int>(count));
      std::vector<int32_t> got(sent.size());
      const int next = (c.rank() + 1) % n;
      const int previous = (c.rank() + n - 1) % n;
      // Rank 0 begins; everyone else sends on after receiving.
      if (c.rank() == 0) {
        c.send(ConstTensorView(sent.data(), {count}), next);
      }
      c.receive(TensorView(got.data(), {count}), previous);
      if (c.rank() != 0) {
        c.send(ConstTensorView(sent.data(), {count}), next);
      }
      const std::vector<int32_t> expected(got.size(), previous * 10 + static_cast<int>(count));
      EXPECT_TRUE(got == expected) << "rank " << c.rank() << ", " << count;
    }
  }
  c.barrier();
}

TEST(Communicator, OfOneProcessIsTheIdentity) {
  const std::unique_ptr<Communicator> alone = single_process();
  EXPECT_EQ(alone->rank(), 0);
  EXPECT_EQ(alone->size(), 1);
  EXPECT_EQ(alone->local_size(), 1);
  check_collectives(*alone);
  EXPECT_EQ(alone->bytes_sent(), 0);
  float value = 1;
  EXPECT_THROW(alone->send(ConstTensorView(&value, {1}), 0), InvalidArgument);
}

TEST(Communicator, SumsAsTheTreeSaysForAnyNumberOfRanks) {
  for (const int ranks : {2, 3, 4, 5}) {
    run_ranks(ranks, check_collectives);
  }
}

TEST(Communicator, RefusesTensorsThatDoNotFit) {
  run_ranks(2, [](Communicator& c) {
    std::array<float, 6> values = {};
    const TensorView six(values.data(), {6});
    const TensorView two(values.data(), {2});
    EXPECT_THAT([&] { c.reduce_scatter(two, six); },
                testing::ThrowsMessage<InvalidArgument>(HasSubstr("2 times (2) f32")));
    EXPECT_THROW(c.all_gather(six, two), InvalidArgument);
    EXPECT_THROW(c.broadcast(six, 2), InvalidArgument);
    EXPECT_THROW(c.send(six, c.rank()), InvalidArgument);
    std::array<int32_t, 2> integers = {};
    EXPECT_THROW(c.all_reduce(TensorView(integers.data(), {2})), InvalidArgument);
  });
}

TEST(Communicator, EndsWhoWaitsForARankThatEnded) {
  EXPECT_THROW(run_ranks(3,
                         [](Communicator& c) {
                           if (c.rank() == 2) {
                             throw Error("ended");
                           }
                           c.barrier();
                         }),
               PeerLost);
}

// The same over MPI: these run as ranks under mpirun, started by the test below.
bool under_mpirun() {
  return launched_ranks() > 1;
}

TEST(MpiRanks, SumAsTheTreeSays) {
  if (!under_mpirun()) {
    GTEST_SKIP() << "runs as a rank of Mpi.*";
  }
  const std::unique_ptr<Communicator> ranks = open_communicator();
  ASSERT_EQ(ranks->size(), launched_ranks());
  EXPECT_EQ(ranks->rank(), launched_rank());
  EXPECT_EQ(ranks->local_size(), ranks->size());
  check_collectives(*ranks);
}

struct Ran {
  int code = 0;
  std::string text;
};

Ran run_line(const std::string& line) {
  Ran ran;
  FILE* pipe = popen((line + " 2>&1").c_str(), "r");
  std::array<char, 4096> buffer;
  for (size_t count = 0; (count = std::fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) {
    ran.text.append(buffer.data(), count);
  }
  const int status = pclose(pipe);
  ran.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return ran;
}

TEST(Mpi, SumsAsTheTreeSays) {
  if (mpi_version().empty() || run_line("mpirun --version").code != 0) {
    GTEST_SKIP() << "needs a build with MPI, and mpirun";
  }
  const std::string program = std::filesystem::read_symlink("/proc/self/exe").string();
  for (const int ranks : {2, 3}) {
    // Open MPI leaks what it holds for the process's life.
    const Ran ran = run_line(
        fmt::format("env ASAN_OPTIONS=detect_leaks=0 mpirun --allow-run-as-root --oversubscribe "
                    "-n {} {} --gtest_color=no --gtest_filter=MpiRanks.*",
                    ranks, program));
    EXPECT_EQ(ran.code, 0) << ran.text;
    EXPECT_THAT(ran.text, HasSubstr("[  PASSED  ] 1 test"));
  }
}

TEST(Launch, ReadsWhatTheLauncherSays) {
  if (under_mpirun()) {
    GTEST_SKIP();
  }
  EXPECT_EQ(launched_ranks(), 1);
  EXPECT_EQ(launched_rank(), 0);
  setenv("PMI_SIZE", "4", 1);
  setenv("PMI_RANK", "3", 1);
  EXPECT_EQ(launched_ranks(), 4);
  EXPECT_EQ(launched_rank(), 3);
  if (mpi_version().empty()) {
    EXPECT_THAT([] { open_communicator(); },
                testing::ThrowsMessage<Error>(HasSubstr("-DFLASHLOOM_MPI=ON")));
  }
  setenv("PMI_SIZE", "many", 1);
  EXPECT_EQ(launched_ranks(), 1);
  unsetenv("PMI_SIZE");
  unsetenv("PMI_RANK");
}

}  // namespace
}  // namespace flashloom
