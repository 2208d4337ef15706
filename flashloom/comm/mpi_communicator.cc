// Messages between pairs by MPI. Nothing of MPI's own collectives is used: their order of summation
// is theirs to choose, and they wait for a dead peer for ever.
#ifdef FLASHLOOM_WITH_MPI

#include "flashloom/comm/mpi_communicator.h"

#include <fmt/format.h>
#include <mpi.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <exception>
#include <string_view>
#include <vector>

#include "flashloom/comm/host_communicator.h"
#include "flashloom/comm/process_watch.h"

namespace flashloom::detail {
namespace {

using Clock = std::chrono::steady_clock;
using Seconds = std::chrono::duration<double>;

void require(int code, std::string_view what) {
  if (code != MPI_SUCCESS) {
    std::array<char, MPI_MAX_ERROR_STRING> text = {};
    int length = 0;
    MPI_Error_string(code, text.data(), &length);
    throw Error(fmt::format("MPI: {}: {}", what,
                            std::string_view(text.data(), static_cast<size_t>(length))));
  }
}

class MpiCommunicator final : public HostCommunicator {
 public:
  MpiCommunicator(int rank, int size, const CommunicatorOptions& options)
      : HostCommunicator(rank, size),
        timeout_(options.timeout_seconds),
        exceptions_(std::uncaught_exceptions()) {
    require(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), "error handler");
    meet();
  }

  // MPI_Finalize waits for all ranks, so whoever leaves by an exception must not call it.
  ~MpiCommunicator() override {
    if (std::uncaught_exceptions() == exceptions_) {
      MPI_Finalize();
    }
  }

  int local_size() const override { return local_size_; }

  void abort(int exit_code) override {
    std::vector<MPI_Request> requests;
    const char nothing = 0;
    for (int r = 0; r < size(); ++r) {
      if (r != rank()) {
        MPI_Isend(&nothing, 1, MPI_BYTE, r, kFailureTag, MPI_COMM_WORLD, &requests.emplace_back());
      }
    }
    // Messages this small are gone once they are sent; a peer that has ended takes none.
    constexpr timespec kLittle = {.tv_sec = 0, .tv_nsec = 1000000};
    int all = 0;
    for (int i = 0; i < 100 && all == 0; ++i) {
      MPI_Testall(static_cast<int>(requests.size()), requests.data(), &all, MPI_STATUSES_IGNORE);
      nanosleep(&kLittle, nullptr);
    }
    MPI_Abort(MPI_COMM_WORLD, exit_code);
  }

 protected:
  void exchange(std::span<const Outgoing> out, std::span<const Incoming> in) override {
    size_t longest = 1;
    for (const Outgoing& message : out) {
      longest = std::max(longest, message.bytes.size());
    }
    for (const Incoming& message : in) {
      longest = std::max(longest, message.bytes.size());
    }
    for (size_t first = 0; first < longest; first += kPiece) {
      requests_.clear();
      for (const Incoming& message : in) {
        if (has_piece(message.bytes, first)) {
          const std::span<std::byte> bytes = piece(message.bytes, first);
          require(MPI_Irecv(bytes.data(), static_cast<int>(bytes.size()), MPI_BYTE, message.from,
                            kTag, MPI_COMM_WORLD, &requests_.emplace_back()),
                  fmt::format("receive from rank {}", message.from));
        }
      }
      for (const Outgoing& message : out) {
        if (has_piece(message.bytes, first)) {
          const std::span<const std::byte> bytes = piece(message.bytes, first);
          require(MPI_Isend(bytes.data(), static_cast<int>(bytes.size()), MPI_BYTE, message.to,
                            kTag, MPI_COMM_WORLD, &requests_.emplace_back()),
                  fmt::format("send to rank {}", message.to));
        }
      }
      wait();
    }
  }

 private:
  static constexpr int kTag = 1;
  static constexpr int kFailureTag = 2;
  // MPI counts in int; pieces also let a slow network show that it moves.
  static constexpr size_t kPiece = size_t{64} << 20;

  // An empty message is a message too.
  template <class Bytes>
  static bool has_piece(const Bytes& bytes, size_t first) {
    return first == 0 || first < bytes.size();
  }

  template <class Bytes>
  static Bytes piece(const Bytes& bytes, size_t first) {
    return bytes.subspan(first, std::min(kPiece, bytes.size() - first));
  }

  // Who is where.
  void meet() {
    const std::array<uint64_t, 2> here = {this_machine(), static_cast<uint64_t>(getpid())};
    std::vector<uint64_t> all(2 * static_cast<size_t>(size()));
    all_gather(TensorView(all.data(), {size(), 2}), ConstTensorView(here.data(), {2}));
    for (int r = 0; r < size(); ++r) {
      const size_t i = 2 * static_cast<size_t>(r);
      processes_.push_back(static_cast<int64_t>(all[i + 1]));
      if (all[i] == here[0]) {
        ++local_size_;
        if (r != rank()) {
          watch_.add(r, processes_.back());
        }
      }
    }
  }

  // Until all requests are done. Peers that compute are awaited without taking their core from
  // them.
  void wait() {
    const auto start = Clock::now();
    constexpr Seconds kSpin(200e-6);  // of a message that is on its way
    constexpr Seconds kLook(0.05);    // between looks at the peers' processes
    auto looked = start;
    while (!done()) {
      const auto now = Clock::now();
      if (now - start < kSpin) {
        sched_yield();
        continue;
      }
      if (now - looked > kLook) {
        looked = now;
        look_for_failures();
        const int ended = watch_.ended();
        // What it sent before it ended may have been on its way when we looked.
        if (ended >= 0 && !done()) {
          throw PeerLost(fmt::format("rank {} (process {}) has ended, and rank {} waits for it",
                                     ended, processes_[static_cast<size_t>(ended)], rank()));
        }
        require_patience(now - start);
      }
      // A tenth of the wait, from 20 µs to 1 ms.
      const double rest = std::clamp(Seconds(now - start).count() / 10, 20e-6, 1e-3);
      const timespec pause = {.tv_sec = 0, .tv_nsec = static_cast<long>(rest * 1e9)};
      nanosleep(&pause, nullptr);
    }
  }

  static void look_for_failures() {
    int told = 0;
    MPI_Status status = {};
    require(MPI_Iprobe(MPI_ANY_SOURCE, kFailureTag, MPI_COMM_WORLD, &told, &status), "probe");
    if (told != 0) {
      throw PeerFailed(fmt::format("rank {} has failed", status.MPI_SOURCE));
    }
  }

  bool done() {
    int all = 0;
    require(MPI_Testall(static_cast<int>(requests_.size()), requests_.data(), &all,
                        MPI_STATUSES_IGNORE),
            "exchange");
    return all != 0;
  }

  void require_patience(Seconds waited) const {
    if (waited > timeout_) {
      throw PeerLost(
          fmt::format("rank {} has waited {:.0f} s for another rank: one hangs, or its machine is "
                      "lost",
                      rank(), waited.count()));
    }
  }

  Seconds timeout_;
  int exceptions_ = 0;
  int local_size_ = 0;
  std::vector<int64_t> processes_;
  ProcessWatch watch_;
  std::vector<MPI_Request> requests_;
};

}  // namespace

std::unique_ptr<Communicator> open_mpi(const CommunicatorOptions& options) {
  int provided = 0;
  // Threads compute, and the one that opened MPI talks.
  require(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MPI_Init_thread");
  if (provided < MPI_THREAD_FUNNELED) {
    throw Error("MPI: this library allows no threads (MPI_THREAD_FUNNELED)");
  }
  int rank = 0;
  int size = 1;
  require(MPI_Comm_rank(MPI_COMM_WORLD, &rank), "rank");
  require(MPI_Comm_size(MPI_COMM_WORLD, &size), "size");
  return std::make_unique<MpiCommunicator>(rank, size, options);
}

std::string mpi_library_version() {
  std::array<char, MPI_MAX_LIBRARY_VERSION_STRING> text = {};
  int length = 0;
  MPI_Get_library_version(text.data(), &length);
  const std::string version(text.data(), static_cast<size_t>(length));
  return version.substr(0, version.find(','));
}

}  // namespace flashloom::detail

#endif  // FLASHLOOM_WITH_MPI
