#include "flashloom/systolic/memory/memory_timing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "flashloom/core/philox.h"

namespace flashloom::systolic {
namespace {

// The last finish of `rows` rows of a tile, dealt to the ports as the DMA deals them.
int64_t transfer(MemoryTiming& memory, const MachineConfig& config, bool is_write, int64_t address,
                 int bytes, int64_t cycle) {
  int64_t finished = 0;
  const int ports = config.port_count();
  const int share = config.shape.rows / ports;
  for (int i = 0; i < share; ++i) {
    for (int port = 0; port < ports; ++port) {
      MemoryRequest request{.port = port,
                            .is_write = is_write,
                            .address = address + int64_t{port * share + i} * bytes,
                            .bytes = bytes,
                            .issued = cycle};
      memory.request(request);
      finished = std::max(finished, request.finished);
    }
  }
  return finished;
}

MachineConfig papers_array() {
  return {.shape = {.rows = 128, .columns = 128}};
}

// 128 rows of 512 bytes at 512 bytes a cycle: the first row is sent in 16 beats, channels are busy
// for 128 cycles, the last response takes 150 more.
TEST(SystolicMemory, AStoreTakesItsBeatsItsBytesAndTheLatency) {
  const MachineConfig config = papers_array();
  MemoryTiming memory(config);
  EXPECT_EQ(transfer(memory, config, true, 0, 512, 0), 1 + 16 + 128 + 150);
}

TEST(SystolicMemory, ALoadTakesItsBytesAndTheLatency) {
  const MachineConfig config = papers_array();
  MemoryTiming memory(config);
  EXPECT_EQ(transfer(memory, config, false, 0, 256, 0), 1 + 64 + 150);
}

// A port sends a row in beats, so its later rows come to their channels late; who comes to the same
// channel in between does not wait for them.
TEST(SystolicMemory, RowsThatComeLaterKeepNobodyWaiting) {
  MachineConfig config = papers_array();
  config.memory.channels = 1;
  config.memory.bytes_per_cycle = 64;
  MemoryTiming memory(config);
  MemoryRequest early{.is_write = true, .bytes = 512, .issued = 0};
  MemoryRequest late{.is_write = true, .bytes = 512, .issued = 100};
  MemoryRequest between{.port = 1, .bytes = 256, .issued = 40};
  memory.request(early);
  memory.request(late);
  memory.request(between);
  EXPECT_EQ(early.finished, 1 + 16 + 8 + 150);
  EXPECT_EQ(late.finished, 100 + 1 + 16 + 8 + 150);
  EXPECT_EQ(between.finished, 40 + 1 + 4 + 150);
}

// Whatever the order of requests: no stretch of time carries more bytes than the bandwidth allows.
TEST(SystolicMemory, ChannelsNeverExceedTheirBandwidth) {
  MachineConfig config = papers_array();
  config.memory.latency = 0;
  config.memory.bytes_per_cycle = 100;
  MemoryTiming memory(config);
  RandomSequence random(1, RandomStream::test);

  struct Row {
    int64_t finished;
    int bytes;
  };

  std::vector<Row> rows;
  for (int i = 0; i < 4000; ++i) {
    MemoryRequest request{.port = static_cast<int>(random.below(16)),
                          .is_write = true,
                          .address = 256 * random.below(64),
                          .bytes = static_cast<int>(32 * (1 + random.below(16))),
                          .issued = i * 4 + random.below(500)};
    const int64_t asked = request.issued;
    memory.request(request);
    EXPECT_GE(request.finished, asked + 1 + request.bytes * 8 / 100);
    rows.push_back({request.finished, request.bytes});
  }
  std::ranges::sort(rows, {}, &Row::finished);
  constexpr size_t kWindow = 200;
  for (size_t i = 0; i + kWindow < rows.size(); ++i) {
    int64_t bytes = 0;
    for (size_t j = i + 1; j <= i + kWindow; ++j) {
      bytes += rows[j].bytes;
    }
    // A row that ends inside a window may have begun before it, one in each channel.
    EXPECT_LE(bytes, (rows[i + kWindow].finished - rows[i].finished + 1) * 100 + 8 * 512);
  }
}

}  // namespace
}  // namespace flashloom::systolic
