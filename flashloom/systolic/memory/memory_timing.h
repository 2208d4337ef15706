#pragma once

#include <cstdint>
#include <vector>

#include "flashloom/systolic/machine/machine_config.h"

namespace flashloom::systolic {

/// A row on its way between main memory and an SRAM.
struct MemoryRequest {
  int instruction = 0;
  int port = 0;
  bool is_write = false;
  int64_t address = 0;
  int bytes = 0;
  int64_t issued = 0;  // cycle in which the port asks; a write's row is read from the SRAM then
  int64_t finished =
      0;  // cycle in which a read's row is written to the SRAM, or a write's response
};

/// When rows arrive. Time only, no data: a row's channel serves it when it has been asked for (a
/// write: when the port has sent it) and the channel is free long enough; after the latency the
/// port takes its beats in order. Requests may come in any order of time: a channel keeps what it
/// has promised and fills the gaps between.
class MemoryTiming {
 public:
  explicit MemoryTiming(const MachineConfig& config);

  /// Earliest cycle from `cycle` on in which the port may ask for another row.
  int64_t earliest_issue(int port, bool is_write, int64_t cycle) const;
  /// Fills `issued` (at least the given one) and `finished`.
  void request(MemoryRequest& request);

 private:
  struct Port {
    int64_t next_issue = 0;
    int64_t data_free = 0;
    std::vector<int64_t> under_way;  // ring: when each of the last `outstanding` rows was finished
    size_t next = 0;
  };

  // When a channel is busy, in ticks, a fraction of a cycle: sorted, apart from each other.
  struct Channel {
    struct Interval {
      int64_t from;
      int64_t to;
    };

    std::vector<Interval> busy;
    int64_t forgotten = 0;  // nothing before this is free

    /// The end of the first `ticks` that are free from `arrival` on; takes them.
    int64_t serve(int64_t arrival, int64_t ticks);
  };

  int64_t extra_stall();

  size_t place_of(int port, bool is_write) const {
    return static_cast<size_t>(port) + (is_write ? ports_.size() / 2 : 0);
  }

  MemoryConfig config_;
  int beat_bytes_;
  std::vector<Channel> channels_;
  std::vector<Port> ports_;  // reads, then writes
  uint64_t count_ = 0;
};

}  // namespace flashloom::systolic
