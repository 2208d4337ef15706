// Whole programs in cycles: the RTL beside a memory that answers when the simulator's does, against
// the simulator on its own.

#include <VSystem4x4.h>
#include <VSystem8x8.h>
#include <gtest/gtest.h>

#include "flashloom/systolic/engine/engine.h"
#include "flashloom/systolic/program/flash_attention.h"
#include "rtl/test/engine_bench.h"

namespace flashloom::rtl {
namespace {

struct BothRuns {
  EngineTrace rtl;
  systolic::Schedule simulator;
};

template <typename Model>
BothRuns run_both(int size, const systolic::MemoryConfig& memory_config, int query_tiles) {
  systolic::MachineConfig config;
  config.shape.rows = size;
  config.shape.columns = size;
  config.memory = memory_config;
  const auto problem =
      systolic::checked_problem(config, {.queries = query_tiles * size, .keys = 3 * size});
  const std::vector<uint32_t> words = systolic::flash_attention(config, problem).words();
  systolic::MainMemory memory(systolic::layout_of(config, problem).bytes);
  systolic::MemoryTiming timing(config);
  BenchOptions options;
  options.memory.model = &timing;
  options.words_before_start = kWordQueue;  // all: the host never keeps the decoder waiting
  options.register_period = 0;
  EXPECT_LE(words.size(), static_cast<size_t>(kWordQueue));
  return {EngineBench<Model>(config).run(words, memory, options),
          systolic::run_engine(config, words, {.memory_bytes = memory.size()})};
}

void expect_equal(const BothRuns& run) {
  EXPECT_EQ(run.rtl.cycles, run.simulator.cycles);
  std::vector<int64_t> issues;
  for (const systolic::MatrixIssue& issue : run.simulator.issues) {
    issues.push_back(issue.cycle);
  }
  EXPECT_EQ(run.rtl.issues, issues);
  std::vector<int64_t> starts[2];
  std::vector<int64_t> finishes[2];
  for (const systolic::DmaTransfer& transfer : run.simulator.transfers) {
    const bool is_store =
        run.simulator.program[static_cast<size_t>(transfer.instruction)].is_store();
    starts[is_store].push_back(transfer.acquired);
    finishes[is_store].push_back(transfer.finished);
  }
  EXPECT_EQ(run.rtl.load_starts, starts[0]);
  EXPECT_EQ(run.rtl.load_finishes, finishes[0]);
  EXPECT_EQ(run.rtl.store_starts, starts[1]);
  EXPECT_EQ(run.rtl.store_finishes, finishes[1]);
  EXPECT_EQ(run.rtl.control.at("matrix_active"), run.simulator.matrix_active);
  EXPECT_EQ(run.rtl.control.at("dma_active"), run.simulator.dma_active);
}

// Memory that moves no more than two beats (of 8 bytes) a cycle, all through one channel: rows of
// different ports never want a bank at once.
TEST(Cycles, EqualWhereRowsComeOneByOne) {
  for (const double bandwidth : {2.0, 5.0, 8.0, 16.0}) {
    for (const int latency : {0, 5, 50, 150}) {
      for (const int query_tiles : {1, 3}) {
        SCOPED_TRACE(testing::Message() << bandwidth << " bytes a cycle, latency " << latency
                                        << ", query tiles " << query_tiles);
        const systolic::MemoryConfig memory{
            .channels = 1, .bytes_per_cycle = bandwidth, .latency = latency};
        expect_equal(run_both<VSystem4x4>(4, memory, query_tiles));
        expect_equal(run_both<VSystem8x8>(8, memory, query_tiles));
      }
    }
  }
}

// Elsewhere ports meet at the banks of the SRAMs: the RTL makes one wait, the simulator knows no
// banks. Memory sees that, and nothing else makes the RTL slower.
TEST(Cycles, LongerByNoMoreThanPortsWaitForBanks) {
  for (const double bandwidth : {16.0, 64.0, 512.0}) {
    for (const int channels : {1, 8}) {
      for (const int latency : {0, 50, 150}) {
        SCOPED_TRACE(testing::Message() << bandwidth << " bytes a cycle, latency " << latency
                                        << ", channels " << channels);
        const systolic::MemoryConfig memory{
            .channels = channels, .bytes_per_cycle = bandwidth, .latency = latency};
        for (const BothRuns& of :
             {run_both<VSystem4x4>(4, memory, 3), run_both<VSystem8x8>(8, memory, 3)}) {
          const int64_t longer = of.rtl.cycles - of.simulator.cycles;
          EXPECT_GE(longer, 0);
          EXPECT_LE(longer, of.rtl.held);
        }
      }
    }
  }
}

}  // namespace
}  // namespace flashloom::rtl
