// Several ranks under a real mpirun.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>

#include "flashloom/comm/communicator.h"
#include "flashloom/io/temporary_directory_for_test.h"
#include "tests/end_to_end/program_for_test.h"

namespace flashloom {
namespace {

using testing::HasSubstr;
using testing::Not;

class MpirunTest : public ProgramTest {
 protected:
  static void SetUpTestSuite() {
    make_folder();
    write_file_atomically(path("train.jsonl"), prompt_rows(80));
    write_file_atomically(path("held.jsonl"), prompt_rows(7));
  }

  void SetUp() override {
    if (mpi_version().empty() || run_program("", folder_->path(), "mpirun --version #").code != 0) {
      GTEST_SKIP() << "needs a build with MPI, and mpirun (Debian: libopenmpi-dev, openmpi-bin)";
    }
  }

  // Open MPI leaks what it holds for the process's life. Each rank leaves its number. mpirun takes
  // twice its patience (s) to end a job, however soon the ranks have ended.
  static std::string mpirun(int ranks, int patience) {
    return fmt::format(
        "env ASAN_OPTIONS=detect_leaks=0 mpirun --allow-run-as-root --oversubscribe --bind-to none "
        "--mca odls_base_sigkill_timeout {} -n {} sh -c 'echo $$ >{}.$OMPI_COMM_WORLD_RANK; "
        "exec \"$@\"' sh",
        patience, ranks, path("pid"));
  }

  static ProgramResult run(int ranks, const std::string& arguments, int patience = 1) {
    return run_program(arguments, folder_->path(), mpirun(ranks, patience));
  }

  static std::string training(const std::string& output, int64_t steps,
                              const std::string& flags = "") {
    return fmt::format(
        "finetune --model {} --data {} --eval-data {} --output {} --batch-tokens 256 "
        "--micro-batch-tokens 64 --lr 1e-3 --schedule constant --threads 1 --steps {} --samples 0 "
        "{}",
        path("model"), path("train.jsonl"), path("held.jsonl"), path(output), steps, flags);
  }

  // Loss of each step; every step must stand there once.
  static std::map<int64_t, double> losses(const std::string& output) {
    std::map<int64_t, double> losses;
    std::istringstream text(read_for_test(path(output) + "/metrics.jsonl"));
    for (std::string line; std::getline(text, line);) {
      const auto json = nlohmann::json::parse(line);
      if (json.contains("loss")) {
        EXPECT_TRUE(losses.emplace(json["step"], json["loss"]).second) << line;
      }
    }
    return losses;
  }

  static void expect_near(const std::map<int64_t, double>& some,
                          const std::map<int64_t, double>& all) {
    int64_t next = 1;
    for (const auto& [step, loss] : some) {
      EXPECT_EQ(step, next++);
      if (all.contains(step)) {
        EXPECT_NEAR(loss, all.at(step), 1e-4 * loss) << step;
      }
    }
  }

  // In the last step, by rank 0.
  static int64_t bytes_sent(const std::string& output) {
    const std::string text = read_for_test(path(output) + "/metrics.jsonl");
    const size_t at = text.rfind("\"bytes_sent\":");
    return at == std::string::npos ? -1 : std::stoll(text.substr(at + 13));
  }

  static int64_t trained_numbers(const std::string& err) {
    const size_t at = err.find(" trainable parameters");
    return std::stoll(err.substr(err.rfind('\n', at) + 1));
  }

  // Starts a run that would take for ever, and calls `disturb` once it has taken some steps.
  static ProgramResult disturbed(int ranks, const std::string& output, const std::string& flags,
                                 const std::function<void()>& disturb, int patience = 1) {
    ProgramResult result;
    std::thread runner([&] {
      result =
          run(ranks, training(output, 1000000, "--save-steps 2 --guards off " + flags), patience);
    });
    const auto lines = [&] {
      const std::string text = read_for_test(path(output) + "/metrics.jsonl");
      return std::count(text.begin(), text.end(), '\n');
    };
    for (int i = 0; lines() < 7 && i < 6000; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    EXPECT_GE(lines(), 7);
    disturb();
    runner.join();
    return result;
  }

  static void send(int signal, int rank) {
    std::ifstream file(path("pid") + fmt::format(".{}", rank));
    pid_t process = 0;
    ASSERT_TRUE(file >> process);
    EXPECT_EQ(kill(process, signal), 0);
  }

  // mpirun's process.
  static pid_t launcher() {
    std::ifstream number(path("pid.0"));
    int process = 0;
    number >> process;
    std::ifstream file(fmt::format("/proc/{}/stat", process));
    std::string id, name, state;
    pid_t parent = 0;
    EXPECT_TRUE(file >> id >> name >> state >> parent);
    return parent;
  }

  static int64_t newest_checkpoint(const std::string& output) {
    int64_t newest = -1;
    for (const auto& entry : std::filesystem::directory_iterator(path(output))) {
      const std::string name = entry.path().filename().string();
      const std::string number = name.substr(name.rfind('-') + 1);
      if (name.starts_with("checkpoint-") &&
          std::all_of(number.begin(), number.end(), [](char c) { return std::isdigit(c) != 0; })) {
        newest = std::max<int64_t>(newest, std::stoll(number));
      }
    }
    return newest;
  }
};

size_t count_of(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) {
    ++count;
  }
  return count;
}

TEST_F(MpirunTest, TwoRanksFollowOneProcessAndOneOfThemSpeaks) {
  for (const std::string method : {"lora", "full"}) {
    const std::string flags = "--json --eval-steps 4 --method " + method;
    const ProgramResult one = run_program(training(method + "1", 8, flags), folder_->path());
    ASSERT_EQ(one.code, 0) << one.err;
    const ProgramResult two = run(2, training(method + "2", 8, flags));
    ASSERT_EQ(two.code, 0) << two.err;
    EXPECT_EQ(losses(method + "2").size(), 8);
    // Half of the gradients and half of the weights, f32, and some norms.
    const int64_t trained = trained_numbers(two.err);
    EXPECT_GE(bytes_sent(method + "2"), 4 * trained);
    EXPECT_LE(bytes_sent(method + "2"), 4 * trained + 5000);
    EXPECT_EQ(bytes_sent(method + "1"), 0);
    expect_near(losses(method + "2"), losses(method + "1"));
    EXPECT_EQ(losses(method + "2")[1], losses(method + "1")[1]);
    const auto json_one = nlohmann::json::parse(one.out);
    const auto json_two = nlohmann::json::parse(two.out);  // and so a single object
    EXPECT_EQ(json_two["eval_loss_before"], json_one["eval_loss_before"]);
    EXPECT_NEAR(json_two["eval_loss"].get<double>(), json_one["eval_loss"].get<double>(), 1e-4);
    EXPECT_EQ(json_two["tokens"], json_one["tokens"]);
    EXPECT_EQ(count_of(two.err, "memory plan"), 1) << two.err;
    EXPECT_EQ(count_of(two.err, "2 ranks, each"), 1) << two.err;
    const ProgramResult again = run(2, training(method + "again", 8, flags));
    ASSERT_EQ(again.code, 0) << again.err;
    const std::string file = method == "lora" ? "/adapter_model.safetensors" : "/model.safetensors";
    EXPECT_TRUE(read_for_test(path(method + "2") + file) ==
                read_for_test(path(method + "again") + file));
  }
}

TEST_F(MpirunTest, ARankThatDiesEndsTheJobAndAnyNumberGoesOn) {
  ASSERT_EQ(run_program(training("whole", 30, "--guards off"), folder_->path()).code, 0);
  const std::map<int64_t, double> whole = losses("whole");
  for (const auto& [victim, after] : std::vector<std::pair<int, int>>{{1, 1}, {0, 3}}) {
    const std::string output = fmt::format("died{}", victim);
    const ProgramResult died = disturbed(2, output, "", [&] { send(SIGKILL, victim); });
    EXPECT_NE(died.code, 0);
    EXPECT_THAT(died.err, HasSubstr(fmt::format("rank {} (process ", victim)));
    EXPECT_THAT(died.err, HasSubstr(fmt::format(") has ended, and rank {} waits", 1 - victim)));
    EXPECT_THAT(died.err, HasSubstr("the same command goes on after the newest of them"));
    const int64_t newest = newest_checkpoint(output);
    ASSERT_GE(newest, 4);
    const std::string rest = training(output, newest + 5, "--save-steps 2 --guards off");
    const ProgramResult result = after == 1 ? run_program(rest, folder_->path()) : run(after, rest);
    ASSERT_EQ(result.code, 0) << result.err;
    EXPECT_THAT(result.err, HasSubstr(fmt::format("going on after step {}", newest)));
    EXPECT_EQ(losses(output).size(), newest + 5);
    expect_near(losses(output), whole);
  }
}

TEST_F(MpirunTest, OneRankGoesOnAsTwo) {
  ASSERT_EQ(run_program(training("grows", 5), folder_->path()).code, 0);
  const ProgramResult two = run(2, training("grows", 9));
  ASSERT_EQ(two.code, 0) << two.err;
  EXPECT_THAT(two.err, HasSubstr("going on after step 5"));
  ASSERT_EQ(run_program(training("alone", 9), folder_->path()).code, 0);
  EXPECT_EQ(losses("grows").size(), 9);
  expect_near(losses("grows"), losses("alone"));
}

TEST_F(MpirunTest, ASignalToAnyRankSavesWhatWasTrained) {
  const ProgramResult stopped = disturbed(2, "signal", "", [] { send(SIGUSR1, 1); });
  EXPECT_NE(stopped.code, 0);
  EXPECT_THAT(stopped.err, HasSubstr("interrupted after step"));
  const auto steps = static_cast<int64_t>(losses("signal").size());
  EXPECT_EQ(newest_checkpoint("signal"), steps);
}

TEST_F(MpirunTest, ASignalThatTheLauncherHandsOnSavesWhatWasTrained) {
  const ProgramResult stopped =
      disturbed(2, "handed_on", "", [] { EXPECT_EQ(kill(launcher(), SIGUSR1), 0); });
  EXPECT_THAT(stopped.err, HasSubstr("interrupted after step"));
  EXPECT_EQ(newest_checkpoint("handed_on"), static_cast<int64_t>(losses("handed_on").size()));
}

TEST_F(MpirunTest, AnInterruptOfTheLauncherSavesWhatWasTrained) {
  const ProgramResult stopped =
      disturbed(2, "interrupt", "", [] { EXPECT_EQ(kill(launcher(), SIGINT), 0); }, /*patience=*/8);
  EXPECT_NE(stopped.code, 0);
  EXPECT_EQ(newest_checkpoint("interrupt"), static_cast<int64_t>(losses("interrupt").size()));
}

TEST_F(MpirunTest, ARankThatHangsIsLostAfterAWhile) {
  const ProgramResult hung = disturbed(2, "hung", "--rank-timeout 2", [] { send(SIGSTOP, 1); });
  EXPECT_NE(hung.code, 0);
  EXPECT_THAT(hung.err, HasSubstr("rank 0 has waited 2 s for another rank"));
}

TEST_F(MpirunTest, ErrorsAreToldOnce) {
  const ProgramResult missing = run(2, training("missing", 2, "--data " + path("none.jsonl")));
  EXPECT_EQ(missing.code, 1);
  EXPECT_EQ(count_of(missing.err, "none.jsonl"), 1) << missing.err;
  EXPECT_THAT(missing.err, Not(HasSubstr("has ended")));
  const ProgramResult usage = run(2, training("usage", 2, "--held-out 2"));
  EXPECT_EQ(usage.code, 2);
  EXPECT_EQ(count_of(usage.err, "--held-out: expected"), 1) << usage.err;
  const ProgramResult other = run(2, "tokenize --model " + path("model"));
  EXPECT_EQ(other.code, 2);
  EXPECT_EQ(count_of(other.err, "tokenize is one process"), 1) << other.err;
}

}  // namespace
}  // namespace flashloom
