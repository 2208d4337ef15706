#include "flashloom/systolic/program/flash_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "flashloom/core/error.h"
#include "flashloom/ops/attention/attention_reference.h"
#include "flashloom/systolic/array/attention_case_for_test.h"
#include "flashloom/systolic/isa/assembler.h"
#include "flashloom/systolic/numeric/exp2.h"

namespace flashloom::systolic {
namespace {

std::vector<double> doubles(const MachineConfig& config, const std::vector<uint32_t>& bits) {
  std::vector<double> numbers;
  for (const uint32_t of : bits) {
    numbers.push_back(to_double(config.formats.element, of));
  }
  return numbers;
}

// The float64 reference of ops/attention for the whole problem, (heads, queries, value_dim).
std::vector<double> oracle(const AttentionCase& test) {
  const AttentionProblem& p = test.problem;
  auto q = doubles(test.config, test.data.query);
  auto k = doubles(test.config, test.data.key);
  auto v = doubles(test.config, test.data.value);
  std::vector<double> out(static_cast<size_t>(p.heads) * p.queries * p.value_dim);
  AttentionInputs inputs;
  inputs.q = TensorView(q.data(), {1, p.heads, p.queries, p.head_dim});
  inputs.k = TensorView(k.data(), {1, p.key_heads, p.keys, p.head_dim});
  inputs.v = TensorView(v.data(), {1, p.key_heads, p.keys, p.value_dim});
  AttentionOutputs outputs;
  outputs.out = TensorView(out.data(), {1, p.heads, p.queries, p.value_dim});
  AttentionOptions options;
  options.visibility.right = p.causal ? 0 : -1;
  options.score.scale = static_cast<float>(test.config.scale());
  attention_forward_reference(outputs, inputs, options);
  return out;
}

struct Errors {
  double mean = 0;
  double largest = 0;
};

Errors errors_of(const AttentionCase& test, const MachineState& state) {
  const std::vector<double> exact = oracle(test);
  const AttentionReference reference(test.config, test.problem, test.data);
  Errors errors;
  size_t next = 0;
  for (int head = 0; head < test.problem.heads; ++head) {
    for (int query = 0; query < test.problem.queries; ++query) {
      const auto row = read_output(test.config, test.problem, state.memory, head, query);
      const auto own = reference.row(head, query);
      for (size_t e = 0; e < row.size(); ++e, ++next) {
        EXPECT_NEAR(own[e], exact[next], 1e-6 * (1 + std::abs(exact[next])));
        errors.mean += std::abs(row[e] - exact[next]);
        errors.largest = std::max(errors.largest, std::abs(row[e] - exact[next]));
      }
    }
  }
  errors.mean /= static_cast<double>(exact.size());
  return errors;
}

// Against ops/attention's float64 reference. The bounds are those of fp16 scores of a few units:
// half a last place of 2^-8 in a score near 4, relative in the output.
void check_close(const MachineConfig& machine, const AttentionProblem& problem) {
  const AttentionCase test(machine, problem);
  const Errors errors = errors_of(test, test.collapsed());
  EXPECT_LT(errors.mean, 6e-4) << describe(test.problem);
  EXPECT_LT(errors.largest, 2e-2) << describe(test.problem);
}

TEST(SystolicAttention, IsAttention) {
  check_close(small_machine(8, 8), {.queries = 8});
  check_close(small_machine(8, 8), {.queries = 40, .keys = 64});
  check_close(small_machine(16, 16), {.queries = 64, .causal = true});
  check_close(small_machine(64, 64), {.queries = 192});
}

TEST(SystolicAttention, Tails) {
  check_close(small_machine(8, 8), {.queries = 13, .keys = 21});
  check_close(small_machine(8, 8), {.queries = 13, .causal = true});
  check_close(small_machine(8, 8), {.queries = 5, .keys = 30, .causal = true});
  check_close(small_machine(8, 8), {.queries = 1, .keys = 1});
}

TEST(SystolicAttention, SmallerDimensionsAndOtherValueDimensions) {
  check_close(small_machine(16, 16), {.queries = 20, .head_dim = 8});
  check_close(small_machine(16, 16), {.queries = 20, .head_dim = 5, .value_dim = 16});
  check_close(small_machine(16, 16), {.queries = 20, .head_dim = 16, .value_dim = 3});
}

// Value columns in blocks of the array's rows, each with an output tile of its own.
TEST(SystolicAttention, ValueDimensionsAboveTheRows) {
  check_close(small_machine(8, 8), {.queries = 20, .value_dim = 16});
  check_close(small_machine(8, 8), {.queries = 20, .value_dim = 21, .causal = true});
  check_close(small_machine(8, 16), {.queries = 20, .keys = 25, .head_dim = 5, .value_dim = 40});
  check_close(small_machine(4, 4), {.heads = 4, .key_heads = 2, .queries = 9, .value_dim = 26 * 4});
  MachineConfig shadow = small_machine(8, 8);
  shadow.shape.shadow = true;
  check_close(shadow, {.heads = 2, .queries = 20, .value_dim = 24});
}

TEST(SystolicAttention, GroupedQueriesAndDecoding) {
  check_close(small_machine(8, 8), {.heads = 6, .key_heads = 2, .queries = 11, .keys = 19});
  check_close(small_machine(8, 8),
              {.heads = 4, .key_heads = 2, .queries = 10, .keys = 17, .causal = true});
  // One query each of four heads shares a block of columns.
  const AttentionProblem decode{
      .heads = 8, .key_heads = 2, .queries = 1, .keys = 50, .causal = true};
  check_close(small_machine(8, 8), decode);
  EXPECT_EQ(tiling_of(small_machine(8, 8), decode).query_blocks, 1);
}

TEST(SystolicAttention, Rectangles) {
  check_close(small_machine(8, 16), {.queries = 30, .keys = 41});
  check_close(small_machine(16, 8), {.queries = 30, .keys = 41});
}

// Defect 1: a row whose maximum is negative leaves 0 as the running maximum.
TEST(SystolicAttention, NegativeScoresFixedAgainstCompat) {
  const AttentionProblem problem{.queries = 8, .keys = 32};
  MachineConfig machine = small_machine(8, 8);
  double good = 0;
  double bad = 0;
  constexpr int kSeeds = 5;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    machine.compat = false;
    const AttentionCase fixed(machine, problem, Distribution::negative, seed);
    good += errors_of(fixed, fixed.reference()).mean / kSeeds;
    machine.compat = true;
    const AttentionCase compat(machine, problem, Distribution::negative, seed);
    bad += errors_of(compat, compat.reference()).mean / kSeeds;
  }
  EXPECT_LT(good, 1e-4);
  EXPECT_GT(bad, 10 * good);
}

// Room for a second output: stores are never waited for, and the bits are the same.
TEST(SystolicAttention, TwoOutputsTakeTurns) {
  MachineConfig machine = small_machine(8, 8);
  machine.memory.latency = 400;  // a store takes longer than the next block's first scores
  const AttentionProblem problem{.queries = 40, .keys = 8};
  const AttentionCase one(machine, problem);
  machine.accumulator_rows = 17;
  const AttentionCase two(machine, problem);
  const auto waits = static_cast<size_t>(IssueState::waits_output);
  EXPECT_GT(one.schedule.issue_cycles[waits], 100);
  EXPECT_EQ(one.schedule.issue_cycles[waits] > two.schedule.issue_cycles[waits], true);
  EXPECT_LT(two.schedule.cycles, one.schedule.cycles);
  EXPECT_TRUE(same_memory(one.reference(), two.reference()));
}

TEST(SystolicAttention, SavedProgramsReplay) {
  const AttentionCase test(small_machine(4, 4), {.queries = 6, .keys = 9});
  const std::string listing = disassemble(test.words);
  EXPECT_EQ(encode_program(assemble(listing)), test.words);
  EXPECT_THAT(listing, testing::HasSubstr("score_limit"));
  EXPECT_THAT(listing, testing::HasSubstr("limit=1"));
}

// Published: 17 words an inner iteration, 32 for one tile with MX 5, DMA 4, fence 1.
TEST(SystolicAttention, OneTileTakesThirtyTwoWords) {
  const MachineConfig machine = small_machine(4, 4);
  EXPECT_EQ(flash_attention(machine, {.queries = 4}).words().size(), 32u);
  EXPECT_EQ(flash_attention(machine, {.queries = 4, .keys = 8}).words().size(), 32u + 17u);
}

TEST(SystolicAttention, RefusesWhatTheMachineCannotRun) {
  const auto refusal = [](const MachineConfig& machine, const AttentionProblem& problem) {
    try {
      checked_problem(machine, problem);
    } catch (const InvalidArgument& error) {
      return std::string(error.what());
    }
    return std::string("ran");
  };
  using testing::HasSubstr;
  EXPECT_THAT(refusal(small_machine(8, 8), {.head_dim = 9}), HasSubstr("head dimension"));
  EXPECT_THAT(refusal(small_machine(8, 8), {.value_dim = 9}), "ran");
  EXPECT_THAT(refusal(small_machine(8, 8), {.value_dim = 209}),
              HasSubstr("value dimension: expected from 1 to 208"));
  MachineConfig small_sums = small_machine(8, 8);
  small_sums.accumulator_rows = 16;
  EXPECT_THAT(refusal(small_sums, {.value_dim = 9}),
              HasSubstr("accumulator-rows: expected at least 17"));
  EXPECT_THAT(refusal(small_machine(8, 16), {.causal = true}), HasSubstr("a square array"));
  EXPECT_THAT(refusal(small_machine(8, 8), {.queries = 9, .keys = 8, .causal = true}),
              HasSubstr("at least as many keys"));
  EXPECT_THAT(refusal(small_machine(8, 8), {.heads = 3, .key_heads = 2}), HasSubstr("multiple"));
  EXPECT_THAT(refusal(small_machine(8, 8), {.keys = 600'000}), HasSubstr("bytes apart"));
}

}  // namespace
}  // namespace flashloom::systolic
