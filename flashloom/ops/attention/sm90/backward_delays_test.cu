#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "flashloom/cuda/debug.cuh"
#include "flashloom/ops/attention/attention_test_contract.h"
#include "flashloom/ops/attention/attention_test_device.cuh"
#include "flashloom/ops/attention/attention_test_run.cuh"
#include "flashloom/ops/attention/random_blocks_for_test.h"

// Every Hopper backward kernel while its roles get to their work at random times (a debug build,
// flashloom/cuda/debug.cuh; other builds run the calls without delays). dK and dV are the same bits
// in any case, dQ where it is added up in a fixed order; else it stays within the law.

namespace flashloom {
namespace {

using attention_test::Case;
using attention_test::check_laws;
using attention_test::ContractCase;
using attention_test::DeviceExecutor;
using attention_test::fresh_seed;
using attention_test::Law;
using attention_test::RandomBlocks;
using attention_test::Results;

struct DelayCase {
  ContractCase contract;
  bool fixed_order;  // of the sums of dQ, in either mode
};

Case grouped_call(int64_t dim, AttentionVisibility visibility, uint64_t seed) {
  Case call = {.batch = 1,
               .heads = 4,
               .key_heads = 2,
               .queries = 300,
               .keys = 700,
               .dim = dim,
               .value_dim = dim,
               .dtype = DType::bf16,
               .seed = seed};
  call.options.visibility = visibility;
  return call;
}

class DelayCases {
 public:
  DelayCases(uint64_t seed, int64_t dim) : seed_(seed), dim_(dim) {
    add("full", {});
    add("causal", {.right = 0});
    add("general", {.right = 0}).options.score.softcap = 5;
    if (dim > 128) {
      return;
    }
    add("wide window", {.left = 600, .right = 30});
    if (dim == 128) {
      add("many steps, so that blocks do not stay", {}).queries = 5200;
      Case& parts = add("many steps, parts of tiles", {});
      parts.queries = 5200;
      parts.options.execution.multiprocessor_share = 0.02F;
    }
    add("packed", {.right = 0}, {0, 1, 130, 700});
    // Blocks that stay take several tiles of keys each.
    add("few blocks", {.right = 0}).options.execution.multiprocessor_share = 0.02F;
    add("few blocks, packed", {}, {0, 1, 130, 700}).options.execution.multiprocessor_share = 0.02F;
    // Of 10 heads of 17 tiles of keys the first two start with late keys where they take turns.
    Case& many = add("many heads", {.right = 0});
    many.heads = many.key_heads = 10;
    many.queries = 200;
    many.keys = 2100;
    add("few blocks, full", {}).options.execution.multiprocessor_share = 0.04F;
    add("near window", {.left = 64, .right = 64});
    add("near packed", {.right = 0}, {0, 65, 66, 300});
    Case& band = add("band", {.left = 64, .right = 20});
    band.key_heads = 4;
    band.queries = band.keys;
    for (const bool few : {false, true}) {
      Case& masked = add(few ? "block mask, few blocks" : "block mask", {});
      const int64_t queries = masked.queries;
      if (few) {
        masked.options.execution.multiprocessor_share = 0.02F;
      }
      masks_.push_back(std::make_unique<RandomBlocks>(queries, masked.keys, 128, 128, masked.heads,
                                                      masked.seed));
      masked.options.blocks = masks_.back()->blocks;
    }
  }

  std::vector<DelayCase>& cases() { return cases_; }

 private:
  Case& add(const std::string& name, AttentionVisibility visibility,
            const std::vector<int32_t>& packed = {}) {
    ContractCase c;
    c.name = name;
    c.call = grouped_call(dim_, visibility, seed_ + cases_.size());
    if (!packed.empty()) {
      c.call.queries = c.call.keys = packed.back();
      c.call.packed_queries = c.call.packed_keys = packed;
    }
    // Blocks that own their queries.
    const bool alone = dim_ > 128 || name.starts_with("near") || name == "band";
    cases_.push_back({c, alone});
    return cases_.back().contract.call;
  }

  uint64_t seed_;
  int64_t dim_;
  std::vector<DelayCase> cases_;
  std::vector<std::unique_ptr<RandomBlocks>> masks_;
};

/// Runs the backward pass in one of its modes, whatever a call says.
class ModeExecutor : public DeviceExecutor {
 public:
  explicit ModeExecutor(bool deterministic) : deterministic_(deterministic) {}

 protected:
  void call_backward(const AttentionGradients& gradients, const AttentionInputs& inputs,
                     const AttentionSaved& saved, std::span<std::byte> workspace,
                     const AttentionOptions& options) const override {
    AttentionOptions mode = options;
    mode.execution.deterministic = deterministic_;
    DeviceExecutor::call_backward(gradients, inputs, saved, workspace, mode);
  }

 private:
  bool deterministic_;
};

class BackwardSm90Delays : public testing::TestWithParam<int64_t> {};

void expect_bits_whatever_delays(const ContractCase& contract, bool alone, bool deterministic,
                                 const Law& law) {
  const ModeExecutor executor(deterministic);
  const bool fixed_order = deterministic || alone;
  Results first;
  for (const uint64_t seed : {0, 1, 2, 3}) {
#ifdef FLASHLOOM_CUDA_DEBUG
    cuda::delay_seed = seed;
#endif
    SCOPED_TRACE(contract.name + (deterministic ? ", deterministic" : "") + ", D " +
                 std::to_string(contract.call.dim) + ", delays " + std::to_string(seed));
    if (seed == 0 || !fixed_order) {  // else the bits are those of seed 0
      law.expect(AttentionBackend::sm90, executor);
    }
    Results again =
        contract.call.run(AttentionBackend::sm90, true, executor, DType::bf16, DType::bf16);
    if (seed == 0) {
      first = std::move(again);
      continue;
    }
    EXPECT_TRUE(again.dk.same_bits(first.dk));
    EXPECT_TRUE(again.dv.same_bits(first.dv));
    if (fixed_order) {
      EXPECT_TRUE(again.dq.same_bits(first.dq));
    }
  }
}

TEST_P(BackwardSm90Delays, LeaveResultsAsTheyAre) {
  FLASHLOOM_NEEDS_GPU();
  DelayCases all(fresh_seed(), GetParam());
  std::vector<const ContractCase*> contracts;
  std::map<const ContractCase*, bool> alone;
  for (const DelayCase& c : all.cases()) {
    contracts.push_back(&c.contract);
    alone[&c.contract] = c.fixed_order;
  }
  std::mutex one_seed_at_a_time;
  check_laws(contracts, true, [&](const ContractCase& contract, const Law& law) {
    const std::lock_guard lock(one_seed_at_a_time);
    for (const bool deterministic : {false, true}) {
      expect_bits_whatever_delays(contract, alone.at(&contract), deterministic, law);
    }
  });
#ifdef FLASHLOOM_CUDA_DEBUG
  cuda::delay_seed = 0;
#endif
  std::printf("%zu calls\n", contracts.size());
}

// 40 columns: the kernel of 64 with checks. 192 and 256 have blocks that own their queries.
INSTANTIATE_TEST_SUITE_P(Widths, BackwardSm90Delays, testing::Values(40, 64, 96, 128, 192, 256),
                         testing::PrintToStringParamName());

}  // namespace
}  // namespace flashloom
