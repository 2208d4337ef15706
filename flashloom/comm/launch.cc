// What started this process, and the communicator that fits.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cstdlib>
#include <cstring>

#include "flashloom/comm/communicator.h"
#ifdef FLASHLOOM_WITH_MPI
#include "flashloom/comm/mpi_communicator.h"
#endif

namespace flashloom {
namespace {

struct Launcher {
  const char* size;
  const char* rank;
};

// Open MPI's mpirun; then MPICH's and others', with which a build for Open MPI finds no peers.
constexpr std::array<Launcher, 2> kLaunchers = {
    {{"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"}, {"PMI_SIZE", "PMI_RANK"}}};

int number(const char* variable, int otherwise) {
  const char* text = std::getenv(variable);
  int value = otherwise;
  if (text != nullptr) {
    const auto [end, code] = std::from_chars(text, text + std::strlen(text), value);
    value = code == std::errc() && *end == '\0' ? value : otherwise;
  }
  return value;
}

}  // namespace

int launched_ranks() {
  int ranks = 1;
  for (const Launcher& launcher : kLaunchers) {
    ranks = std::max(ranks, number(launcher.size, 1));
  }
  return ranks;
}

int launched_rank() {
  int rank = 0;
  for (const Launcher& launcher : kLaunchers) {
    rank = std::max(rank, number(launcher.rank, 0));
  }
  return rank;
}

#ifdef FLASHLOOM_WITH_MPI

std::unique_ptr<Communicator> open_communicator(const CommunicatorOptions& options) {
  const int ranks = launched_ranks();
  if (ranks == 1) {
    return single_process();  // without the time and the threads that MPI takes
  }
  std::unique_ptr<Communicator> communicator = detail::open_mpi(options);
  if (communicator->size() != ranks) {
    throw Error(fmt::format(
        "the launcher started {} processes, but MPI connects {}: this program was built "
        "with {}, so start it with the mpirun of that",
        ranks, communicator->size(), mpi_version()));
  }
  return communicator;
}

std::string mpi_version() {
  return detail::mpi_library_version();
}

#else

std::unique_ptr<Communicator> open_communicator(const CommunicatorOptions& /*options*/) {
  if (launched_ranks() > 1) {
    throw Error(
        fmt::format("this program was built without MPI, so that {} ranks would be {} runs that do "
                    "not know of one another. Install Open MPI (Debian: libopenmpi-dev and "
                    "openmpi-bin), configure with -DFLASHLOOM_MPI=ON and build again; or start one "
                    "process without mpirun",
                    launched_ranks(), launched_ranks()));
  }
  return single_process();
}

std::string mpi_version() {
  return {};
}

#endif

}  // namespace flashloom
