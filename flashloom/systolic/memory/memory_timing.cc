#include "flashloom/systolic/memory/memory_timing.h"

#include <algorithm>
#include <cmath>
#include <iterator>

#include "flashloom/core/parallel.h"
#include "flashloom/core/philox.h"

namespace flashloom::systolic {
namespace {

constexpr int64_t kTicks = 1 << 16;  // of a cycle, so that odd bandwidths do not round

// The digits of the block's number to the base of the channels, added: rows a power of two apart,
// as V^T's are, still meet all channels.
size_t channel_of(int64_t address, const MemoryConfig& config) {
  int64_t sum = 0;
  for (int64_t block = address / config.interleave; block > 0 && config.channels > 1;
       block /= config.channels) {
    sum += block % config.channels;
  }
  return static_cast<size_t>(sum % config.channels);
}

}  // namespace

MemoryTiming::MemoryTiming(const MachineConfig& config)
    : config_(config.memory),
      beat_bytes_(config.beat_bytes()),
      channels_(static_cast<size_t>(config.memory.channels)),
      ports_(2 * static_cast<size_t>(config.port_count())) {
  for (Port& port : ports_) {
    port.under_way.resize(static_cast<size_t>(config.dma.outstanding), -1);
  }
}

int64_t MemoryTiming::earliest_issue(int port, bool is_write, int64_t cycle) const {
  const Port& of = ports_[place_of(port, is_write)];
  return std::max({cycle, of.next_issue, of.under_way[of.next] + 1});
}

void MemoryTiming::request(MemoryRequest& request) {
  Port& port = ports_[place_of(request.port, request.is_write)];
  request.issued = earliest_issue(request.port, request.is_write, request.issued);
  const int64_t beats = tile_count(request.bytes, beat_bytes_);
  // A write's row leaves the SRAM beat by beat.
  port.next_issue = request.issued + (request.is_write ? beats : 1);
  int64_t arrival = request.issued + 1;
  if (request.is_write) {
    port.data_free = std::max(port.data_free, arrival) + beats;
    arrival = port.data_free;
  }
  Channel& channel = channels_[channel_of(request.address, config_)];
  const double ticks =
      static_cast<double>(request.bytes) * config_.channels * kTicks / config_.bytes_per_cycle;
  const int64_t end =
      channel.serve((arrival + extra_stall()) * kTicks, static_cast<int64_t>(std::ceil(ticks)));
  const int64_t served = tile_count(end, kTicks) + config_.latency;
  request.finished = served;
  if (!request.is_write) {
    port.data_free = std::max(port.data_free + beats, served);
    request.finished = port.data_free;
  }
  port.under_way[port.next] = request.finished;
  port.next = (port.next + 1) % port.under_way.size();
  ++count_;
}

int64_t MemoryTiming::Channel::serve(int64_t arrival, int64_t ticks) {
  // More than ever lie ahead of each other: neighbours are one interval.
  constexpr size_t kMost = 256;
  if (busy.size() == kMost) {
    const auto half = busy.begin() + kMost / 2;
    forgotten = (half - 1)->to;
    busy.erase(busy.begin(), half);
  }
  int64_t from = std::max(arrival, forgotten);
  auto next = std::ranges::upper_bound(busy, from, {}, &Interval::to);
  for (; next != busy.end() && from + ticks > next->from; ++next) {
    from = std::max(from, next->to);
  }
  const int64_t to = from + ticks;
  const bool joins_previous = next != busy.begin() && std::prev(next)->to == from;
  const bool joins_next = next != busy.end() && next->from == to;
  if (joins_previous && joins_next) {
    std::prev(next)->to = next->to;
    busy.erase(next);
  } else if (joins_previous) {
    std::prev(next)->to = to;
  } else if (joins_next) {
    next->from = from;
  } else {
    busy.insert(next, {from, to});
  }
  return to;
}

int64_t MemoryTiming::extra_stall() {
  if (config_.stall_chance == 0) {
    return 0;
  }
  const auto bits = philox(config_.seed, count_, static_cast<uint64_t>(RandomStream::test));
  if (uniform_from_bits(bits[0]) >= static_cast<float>(config_.stall_chance)) {
    return 0;
  }
  return 1 + bits[1] % static_cast<uint32_t>(config_.stall_cycles);
}

}  // namespace flashloom::systolic
