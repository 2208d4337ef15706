#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace flashloom {

/// Tells when other processes of this machine end, so that nobody waits for an answer that cannot
/// come. The kernel's handles of processes (pidfd, Linux 5.3) are used: a process that its parent
/// has not yet waited for counts as ended, and a number that is used again does not mislead.
class ProcessWatch {
 public:
  ProcessWatch() = default;
  ~ProcessWatch();
  ProcessWatch(const ProcessWatch&) = delete;
  ProcessWatch& operator=(const ProcessWatch&) = delete;

  /// Watches a process of this_machine(); `rank` is what ended() shall say. Nothing where the
  /// kernel has no such handles.
  void add(int rank, int64_t process);

  /// The rank of a process that has ended, or -1.
  int ended() const;

 private:
  struct Watched {
    int rank = 0;
    int descriptor = -1;
  };

  std::vector<Watched> watched_;
};

/// A number that processes with the same kernel and the same process numbers share.
uint64_t this_machine();

}  // namespace flashloom
