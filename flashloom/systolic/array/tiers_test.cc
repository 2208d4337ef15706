#include <fmt/format.h>
#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/philox.h"
#include "flashloom/systolic/array/attention_case_for_test.h"

namespace flashloom::systolic {
namespace {

void expect_same(const MachineState& a, const MachineState& b, const std::string& what) {
  EXPECT_TRUE(same_memory(a, b)) << what;
  EXPECT_TRUE(a.accumulators == b.accumulators) << what;
  EXPECT_TRUE(a.spad == b.spad) << what;
}

// A random shape, problem, machine and memory, stalls included.
AttentionCase random_case(uint64_t seed, ArrayShape shape) {
  RandomSequence random(seed, RandomStream::test);
  const bool square = shape.rows == shape.columns;
  shape.pieces = 2 << random.below(4);
  shape.divider_latency = static_cast<int>(1 + random.below(20));
  shape.pe_depth = random.below(2) == 0 ? 1 : static_cast<int>(2 + random.below(3));
  shape.shadow = random.below(2) == 0;
  MachineConfig machine{.shape = shape};
  machine.compat = random.below(4) == 0;
  machine.controller.slots = static_cast<int>(1 + random.below(3));
  machine.memory.channels = static_cast<int>(1 + random.below(4));
  machine.memory.bytes_per_cycle = 4 + random.below(60);
  machine.memory.latency = static_cast<int>(random.below(200));
  machine.memory.stall_chance = random.below(2) == 0 ? 0.3 : 0;
  machine.memory.seed = seed;
  AttentionProblem problem;
  problem.key_heads = static_cast<int>(1 + random.below(2));
  problem.heads = problem.key_heads * static_cast<int>(1 + random.below(2));
  problem.queries = static_cast<int>(1 + random.below(static_cast<uint32_t>(3 * shape.columns)));
  problem.keys =
      problem.queries + static_cast<int>(random.below(static_cast<uint32_t>(2 * shape.rows)));
  problem.head_dim = static_cast<int>(1 + random.below(static_cast<uint32_t>(shape.rows)));
  problem.value_dim = static_cast<int>(
      1 + random.below(static_cast<uint32_t>(shape.rows * (random.below(3) == 0 ? 3 : 1))));
  if (random.below(4) == 0) {
    // Room for two outputs.
    machine.accumulator_rows = 2 * accumulator_rows_for(machine, problem);
  }
  problem.causal = square && random.below(2) == 0;
  return {machine, problem, static_cast<Distribution>(random.below(kDistributionCount)), seed};
}

void check_random(ArrayShape shape, int cases) {
  for (int i = 0; i < cases; ++i) {
    const AttentionCase test = random_case(static_cast<uint64_t>(i), shape);
    const std::string what = fmt::format("case {}: {}", i, describe(test.problem));
    const MachineState reference = test.reference();
    expect_same(reference, test.collapsed(), what);
    expect_same(reference, test.collapsed(true), what + ", integers");
  }
}

TEST(SystolicTiers, AgreeOnRandomAttentionAtFour) {
  check_random({4, 4}, 60);
}

TEST(SystolicTiers, AgreeOnRandomAttentionAtEight) {
  check_random({8, 8}, 30);
}

TEST(SystolicTiers, AgreeOnRandomAttentionOnRectangles) {
  check_random({4, 8}, 30);
  check_random({8, 4}, 30);
  check_random({3, 7}, 20);
}

TEST(SystolicTiers, AgreeOnRandomAttentionAtSixteen) {
  check_random({16, 16}, 6);
}

// Depth and shadow registers change cycles and no bit, so the tile tier, which knows neither, must
// give the bits of the published array.
TEST(SystolicTiers, DepthAndShadowRegistersChangeNoBit) {
  const AttentionProblem problem{.queries = 21, .keys = 30, .value_dim = 16};
  const AttentionCase published(small_machine(8, 8), problem);
  const MachineState expected = published.reference();
  for (const int depth : {1, 2, 3, 7}) {
    for (const bool shadow : {false, true}) {
      MachineConfig machine = small_machine(8, 8);
      machine.shape.pe_depth = depth;
      machine.shape.shadow = shadow;
      const AttentionCase test(machine, problem);
      const MachineState reference = test.reference();
      EXPECT_TRUE(same_memory(reference, expected)) << depth << " " << shadow;
      EXPECT_TRUE(same_memory(test.collapsed(), expected)) << depth << " " << shadow;
      EXPECT_EQ(test.schedule.cycles == published.schedule.cycles, depth == 1 && !shadow);
    }
  }
}

// PEs of another depth under the same signals: what the plan drives for one stage is wrong for two.
TEST(SystolicTiers, PesOfAnotherDepthNeedTheirOwnPlan) {
  const AttentionCase test(small_machine(4, 4), {.queries = 6, .keys = 9});
  MachineConfig deeper = test.config;
  for (const int depth : {1, 2}) {
    deeper.shape.pe_depth = depth;
    RegisterArray array(deeper);
    MachineState state = test.fresh();
    Sram sums = state.accumulators;
    run_reference(test.config, test.schedule, state,
                  [&](const ObservedCycle& cycle) { array.step(cycle.drive, state.spad, sums); });
    EXPECT_EQ(sums == state.accumulators, depth == 1);
  }
}

// What waves see: every PE's registers of a shadow machine hold the queries that were loaded, while
// the array computes with what it copied.
TEST(SystolicTiers, ShadowRegistersLoadBesideTheWork) {
  MachineConfig machine = small_machine(4, 4);
  machine.shape.shadow = true;
  const AttentionCase test(machine, {.queries = 12, .keys = 8});
  int loads_during_work = 0;
  MachineState state = test.fresh();
  run_reference(test.config, test.schedule, state, [&](const ObservedCycle& cycle) {
    int busy = 0;
    for (const MatrixIssue& issue : test.schedule.issues) {
      const Function function = test.schedule.program[issue.instruction].matrix_function();
      busy += function != Function::load_stationary && issue.start() <= cycle.cycle &&
                      cycle.cycle < issue.start() + plan_timing(function).busy.at(test.config.shape)
                  ? 1
                  : 0;
    }
    loads_during_work += cycle.drive.shadow_read && busy > 0 ? 1 : 0;
  });
  EXPECT_EQ(loads_during_work, 2 * 4);  // both later blocks' queries
  EXPECT_TRUE(same_memory(state, test.collapsed()));
}

TEST(SystolicTiers, AgreeInOtherFormats) {
  for (const ArrayFormats& formats : {ArrayFormats{kBf16, kFp32}, ArrayFormats{kFp32, kFp32},
                                      ArrayFormats{kFp16, kFp16}, ArrayFormats{kBf16, kBf16}}) {
    MachineConfig machine = small_machine(4, 4);
    machine.formats = formats;
    const AttentionCase test(machine, {.queries = 10, .keys = 14});
    expect_same(test.reference(), test.collapsed(), "formats");
  }
}

// Every instruction set that this machine has, and the integers, on a wider array.
TEST(SystolicTiers, EveryInstructionSetGivesTheSameBits) {
  for (const Distribution distribution :
       {Distribution::outliers, Distribution::large_scores, Distribution::subnormal,
        Distribution::negative, Distribution::rising}) {
    const AttentionCase test(small_machine(32, 32), {.queries = 70, .causal = true}, distribution);
    const MachineState integers = test.collapsed(true);
    for (const int64_t target : {HWY_AVX3, HWY_AVX2, HWY_STATIC_TARGET}) {
      if ((hwy::SupportedTargets() & target) != 0) {
        hwy::SetSupportedTargetsForTest(target);
        hwy::GetChosenTarget().Update(hwy::SupportedTargets());
        expect_same(integers, test.collapsed(), hwy::TargetName(target));
        hwy::SetSupportedTargetsForTest(0);
        hwy::GetChosenTarget().Update(hwy::SupportedTargets());
      }
    }
  }
}

TEST(SystolicTiers, ThreadsDoNotChangeBits) {
  const AttentionCase test(small_machine(64, 64), {.queries = 130});
  set_thread_count(1);
  const MachineState one = test.collapsed();
  set_thread_count(2);
  expect_same(one, test.collapsed(), "two threads");
  set_thread_count(0);
}

// The accumulation SRAM's writes happen in the cycles that the plan and the schedule give.
TEST(SystolicTiers, WritesAccumulatorsInThePlannedCycles) {
  const AttentionCase test(small_machine(4, 4), {.queries = 6, .keys = 9});
  std::vector<std::pair<int64_t, int64_t>> planned;
  for (const MatrixIssue& issue : test.schedule.issues) {
    const Instruction& instruction = test.schedule.program[issue.instruction];
    for (const Window& window : plan_windows(test.config.shape.shadow)) {
      const bool writes =
          window.signal == Signal::accumulate_sum || window.signal == Signal::accumulate_scale;
      if (writes && window.function == planned_as(instruction.matrix_function())) {
        const int first = window.first.at(test.config.shape);
        for (int t = first; t <= window.last.at(test.config.shape); ++t) {
          planned.emplace_back(issue.start() + t,
                               instruction[Field::accumulator_row] +
                                   (t - first) * instruction[Field::accumulator_stride]);
        }
      }
    }
  }
  std::ranges::sort(planned);
  std::vector<std::pair<int64_t, int64_t>> seen;
  MachineState state = test.fresh();
  run_reference(test.config, test.schedule, state, [&](const ObservedCycle& cycle) {
    if (cycle.write != nullptr) {
      seen.emplace_back(cycle.cycle, cycle.write->row);
    }
  });
  EXPECT_EQ(seen, planned);
}

TEST(SystolicTiers, RefusesDelaysThatDoNotCollapse) {
  AttentionCase test(small_machine(4, 4), {.queries = 4});
  for (Instruction& instruction : test.schedule.program) {
    if (instruction.kind == Kind::matrix) {
      instruction[Field::delay] = 0;
    }
  }
  MachineState state = test.fresh();
  EXPECT_THROW(run_collapsed(test.config, test.schedule, state), Unsupported);
}

}  // namespace
}  // namespace flashloom::systolic
