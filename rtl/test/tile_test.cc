// One tile of the paper's 128 x 128 array by value: load, score, value, normalise and store, in
// the verilated accelerator and in the simulator.

#include <VSystem128x128.h>
#include <gtest/gtest.h>
#include <pthread.h>

#include <algorithm>
#include <iostream>

#include "flashloom/systolic/engine/engine.h"
#include "flashloom/systolic/program/attention_data.h"
#include "flashloom/systolic/program/flash_attention.h"
#include "rtl/test/engine_bench.h"
#include "rtl/test/lockstep.h"

namespace flashloom::rtl {
namespace {

constexpr int kSize = 128;

void compare() {
  systolic::MachineConfig config;
  config.shape.rows = kSize;
  config.shape.columns = kSize;
  const auto problem = systolic::checked_problem(config, {.queries = kSize, .keys = kSize});
  const std::vector<uint32_t> words = systolic::flash_attention(config, problem).words();
  systolic::MainMemory given(systolic::layout_of(config, problem).bytes);
  const systolic::AttentionData data =
      systolic::random_inputs(config, problem, systolic::Distribution::outliers, 1);
  systolic::place_inputs(config, problem, data, given);

  // Memory answers as the simulator's does; registers of every 16th cycle are 50 MB.
  systolic::MemoryTiming timing(config);
  BenchOptions options;
  options.memory.model = &timing;
  options.words_before_start = kWordQueue;
  options.register_period = 16;
  EngineBench<VSystem128x128> bench(config, {.rows = 8, .columns = 8});
  systolic::MainMemory of_rtl = given;
  const EngineTrace trace = bench.run(words, of_rtl, options);

  const systolic::Schedule schedule = schedule_of(config, words, trace);
  EXPECT_EQ(control_difference(config, schedule, trace), "");
  systolic::MainMemory of_simulator = given;
  EXPECT_EQ(register_difference(config, schedule, trace, of_simulator), "");
  EXPECT_TRUE(std::ranges::equal(of_rtl.bytes(), of_simulator.bytes()));
  EXPECT_FALSE(std::ranges::equal(of_rtl.bytes(), given.bytes()));

  const systolic::Schedule alone =
      systolic::run_engine(config, words, {.memory_bytes = given.size()});
  EXPECT_EQ(trace.control.at("matrix_active"), alone.matrix_active);
  // Longer by no more than ports wait for each other at the SRAMs' banks (cycles_test.cc).
  EXPECT_GE(trace.cycles, alone.cycles);
  EXPECT_LE(trace.cycles - alone.cycles, trace.held);
  std::cout << "cycles: RTL " << trace.cycles << ", simulator " << alone.cycles << "; active: RTL "
            << trace.control.at("matrix_active") << ", simulator " << alone.matrix_active << '\n';
}

// The model keeps temporaries of up to 1.8 million bits (all registers) on its stack.
TEST(Tile, Array128x128) {
  constexpr size_t kStackBytes = size_t{1} << 30;  // of address space, of which little is touched
  pthread_attr_t attributes;
  ASSERT_EQ(pthread_attr_init(&attributes), 0);
  ASSERT_EQ(pthread_attr_setstacksize(&attributes, kStackBytes), 0);
  pthread_t thread = {};
  const auto body = [](void*) -> void* {
    compare();
    return nullptr;
  };
  ASSERT_EQ(pthread_create(&thread, &attributes, body, nullptr), 0);
  EXPECT_EQ(pthread_join(thread, nullptr), 0);
  pthread_attr_destroy(&attributes);
}

}  // namespace
}  // namespace flashloom::rtl
