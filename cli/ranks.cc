#include "cli/ranks.h"

#include <fmt/format.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <memory>
#include <string_view>
#include <thread>

#include "cli/arguments.h"
#include "cli/terminal.h"

namespace flashloom::cli {
namespace {

// Errors that all ranks make of the same input are told once: rank 0 tells them and ends the job
// before the others come to it.
constexpr std::chrono::seconds kAfterRank0{2};

// That a process may run on; 0: this one.
int cores_of(pid_t process) {
  cpu_set_t cores;
  return sched_getaffinity(process, sizeof(cores), &cores) == 0 ? CPU_COUNT(&cores) : 1;
}

int exit_code(const std::exception& error) {
  return dynamic_cast<const UsageError*>(&error) != nullptr ? kUsage : kFailure;
}

}  // namespace

int run_as_rank(const CommunicatorOptions& options, const std::string& lost,
                const std::function<int(Communicator&)>& job) {
  std::unique_ptr<Communicator> ranks;
  try {
    ranks = open_communicator(options);
  } catch (const Error&) {
    if (launched_rank() > 0) {
      return kFailure;  // rank 0 says the same
    }
    throw;
  }
  if (ranks->size() == 1) {
    return job(*ranks);
  }
  set_quiet(ranks->rank() > 0);
  catch_interrupts(/*launched=*/true);
  try {
    return job(*ranks);
  } catch (const PeerFailed&) {
    // It says why, and ends the job as soon as it has said so.
    std::this_thread::sleep_for(kAfterRank0);
    ranks->abort(kFailure);
    return kFailure;
  } catch (const PeerLost& error) {
    fmt::print(stderr, "flashloom: {}. {}\n", error.what(), lost);
    ranks->abort(kFailure);
    return kFailure;
  } catch (const std::exception& error) {
    const auto until = std::chrono::steady_clock::now() + kAfterRank0;
    while (ranks->rank() > 0 && !interrupted() && std::chrono::steady_clock::now() < until) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    if (ranks->rank() > 0 && interrupted()) {
      ranks->abort(exit_code(error));
      return exit_code(error);
    }
    fmt::print(stderr, "flashloom: {}{}\n",
               ranks->rank() == 0 ? "" : fmt::format("rank {}: ", ranks->rank()), error.what());
    ranks->abort(exit_code(error));
    return exit_code(error);
  }
}

int threads_of_rank(int64_t asked, const Communicator& ranks) {
  if (asked > 0 || ranks.size() == 1) {
    return static_cast<int>(asked);
  }
  const int allowed = cores_of(0);
  const bool bound = allowed < cores_of(getppid());  // the launcher's own are those of all ranks
  return bound ? allowed : std::max(1, allowed / ranks.local_size());
}

void refuse_ranks(int argc, char** argv) {
  constexpr std::string_view kOfRanks = "finetune";
  const std::string_view job = argc > 1 ? argv[1] : "";
  if (launched_ranks() > 1 && !job.empty() && job.front() != '-' && job != kOfRanks) {
    throw UsageError(fmt::format("{} is one process: start it without mpirun ({} runs as {} ranks)",
                                 job, kOfRanks, launched_ranks()));
  }
}

}  // namespace flashloom::cli
