// The verilated engine against the simulator: every register at every cycle, every row of sums,
// every issue and transfer, and memory at the end, over random programs with AXI and host stalls.

#include "rtl/test/lockstep.h"

#include <VEngine16x16.h>
#include <VEngine4x4.h>
#include <VEngine4x8.h>
#include <VEngine8x4.h>
#include <VEngine8x8.h>
#include <VEngine8x8Compat.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "rtl/test/random_program.h"

namespace flashloom::rtl {
namespace {

systolic::MachineConfig machine(int rows, int columns) {
  systolic::MachineConfig config;
  config.shape.rows = rows;
  config.shape.columns = columns;
  return config;
}

template <typename Model>
void compare(const systolic::MachineConfig& config, int programs, uint64_t seed) {
  EngineBench<Model> bench(config);
  std::mt19937_64 random(seed);
  for (int i = 0; i < programs; ++i) {
    SCOPED_TRACE(testing::Message() << "program " << i << " of seed " << seed);
    const RandomProgram program =
        i % 3 == 2 ? random_instructions(config, random) : random_attention(config, random);
    BenchOptions options;
    options.memory = {.latency = 1 + static_cast<int>(random() % 60),
                      .stall_chance = i % 4 == 0 ? 0 : 0.1 * static_cast<double>(random() % 8),
                      .seed = random()};
    options.host_stall_chance = i % 5 == 0 ? 0.8 : 0;
    systolic::MainMemory of_rtl = program.memory;
    const EngineTrace trace = bench.run(program.words, of_rtl, options);
    const systolic::Schedule schedule = schedule_of(config, program.words, trace);
    ASSERT_EQ(control_difference(config, schedule, trace), "");
    systolic::MainMemory of_simulator = program.memory;
    ASSERT_EQ(register_difference(config, schedule, trace, of_simulator), "");
    ASSERT_TRUE(std::ranges::equal(of_rtl.bytes(), of_simulator.bytes()))
        << "memory differs at the end";
  }
}

TEST(Lockstep, Array4x4) {
  compare<VEngine4x4>(machine(4, 4), 100, 11);
}

TEST(Lockstep, Array8x8) {
  compare<VEngine8x8>(machine(8, 8), 100, 12);
}

TEST(Lockstep, Array4x8) {
  compare<VEngine4x8>(machine(4, 8), 100, 13);
}

TEST(Lockstep, Array8x4) {
  compare<VEngine8x4>(machine(8, 4), 100, 14);
}

TEST(Lockstep, Array16x16) {
  compare<VEngine16x16>(machine(16, 16), 20, 15);
}

TEST(Lockstep, CompatArray8x8) {
  systolic::MachineConfig config = machine(8, 8);
  config.compat = true;
  compare<VEngine8x8Compat>(config, 20, 16);
}

}  // namespace
}  // namespace flashloom::rtl
