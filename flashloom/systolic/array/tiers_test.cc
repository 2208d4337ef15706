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
  problem.value_dim = static_cast<int>(1 + random.below(static_cast<uint32_t>(shape.rows)));
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
    for (const Window& window : plan_windows()) {
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
