// The verilated accelerator against the simulator: every register at every cycle, every row of
// sums, every issue and transfer, every counter, and memory at the end, over random programs with
// AXI and host stalls.

#include "rtl/test/lockstep.h"

#include <VSystem16x16.h>
#include <VSystem4x4.h>
#include <VSystem4x4Bfloat16.h>
#include <VSystem4x8.h>
#include <VSystem8x4.h>
#include <VSystem8x8.h>
#include <VSystem8x8Compat.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "rtl/test/engine_bench.h"
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
void compare(systolic::MachineConfig config, int programs, uint64_t seed,
             const ArrayBlocks& blocks = {}) {
  std::mt19937_64 random(seed);
  for (int i = 0; i < programs; ++i) {
    SCOPED_TRACE(testing::Message() << "program " << i << " of seed " << seed);
    config.controller.serial = i % 7 == 3;
    EngineBench<Model> bench(config, blocks);
    const RandomProgram program =
        i % 3 == 2 ? random_instructions(config, random) : random_attention(config, random);
    BenchOptions options;
    options.memory = {.latency = 1 + static_cast<int>(random() % 60),
                      .stall_chance = i % 4 == 0 ? 0 : 0.1 * static_cast<double>(random() % 8),
                      .seed = random()};
    options.host_stall_chance = i % 5 == 0 ? 0.8 : 0;
    options.fetch = i % 4 == 1;
    options.words_before_start = i % 2 == 0 ? 0 : kWordQueue;
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
  compare<VSystem4x4>(machine(4, 4), 100, 11);
}

TEST(Lockstep, Array8x8) {
  compare<VSystem8x8>(machine(8, 8), 100, 12);
}

TEST(Lockstep, Array4x8) {
  compare<VSystem4x8>(machine(4, 8), 100, 13);
}

TEST(Lockstep, Array8x4) {
  compare<VSystem8x4>(machine(8, 4), 100, 14);
}

TEST(Lockstep, Array16x16) {
  compare<VSystem16x16>(machine(16, 16), 20, 15, {.rows = 8, .columns = 8});
}

TEST(Lockstep, CompatArray8x8) {
  systolic::MachineConfig config = machine(8, 8);
  config.compat = true;
  compare<VSystem8x8Compat>(config, 20, 16);
}

TEST(Lockstep, Bfloat16AndThreeSlots) {
  systolic::MachineConfig config = machine(4, 4);
  config.formats.element = systolic::parse_float_format("bf16");
  config.controller.slots = 3;
  compare<VSystem4x4Bfloat16>(config, 100, 17);
}

}  // namespace
}  // namespace flashloom::rtl
