#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "flashloom/ops/attention/attention_test_run.cuh"
#include "flashloom/ops/attention/sm90/forward_band_call.cuh"

// What tests of the Hopper forward kernel for narrow bands share.

namespace flashloom::attention_test {

/// The first tile of keys that tile 0 of queries may see, if the kernel takes the call.
inline std::optional<int32_t> band_shift(const AttentionOutputs& outputs,
                                         const AttentionInputs& inputs,
                                         const AttentionOptions& options) {
  return sm90::forward_band_shift({outputs, inputs, options, nullptr, nullptr});
}

/// Small calls, too, take the kernel.
class ForwardBand : public testing::Test {
 protected:
  void SetUp() override { sm90::forward_band_always = true; }

  void TearDown() override { sm90::forward_band_always = false; }
};

/// Expects that the kernel takes the call.
class BandExecutor : public SharedOffsetsExecutor {
 public:
  using SharedOffsetsExecutor::SharedOffsetsExecutor;

 protected:
  void call_forward(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                    std::span<std::byte> workspace,
                    const AttentionOptions& options) const override {
    EXPECT_TRUE(band_shift(outputs, inputs, shared(options))) << "another kernel takes the call";
    SharedOffsetsExecutor::call_forward(outputs, inputs, workspace, options);
  }
};

/// Calls that are held to the law.
class BandCases {
 public:
  explicit BandCases(uint64_t seed) : random(seed, RandomStream::test) {}

  /// `rows` queries and keys of a batch of 2, 4 heads over 2.
  Case& add(int64_t rows, AttentionVisibility visibility, DType dtype = DType::bf16) {
    ContractCase c;
    c.call = {.batch = 2,
              .heads = 4,
              .key_heads = 2,
              .queries = rows,
              .keys = rows,
              .dim = 64,
              .value_dim = 64,
              .dtype = dtype,
              .seed = random.below(1u << 30)};
    c.call.options.visibility = visibility;
    c.name = std::to_string(rows) + " rows, window " + std::to_string(visibility.left) + ", " +
             std::to_string(visibility.right) + ", call " + std::to_string(all.size());
    all.push_back(c);
    return all.back().call;
  }

  int64_t below(uint32_t limit) { return static_cast<int64_t>(random.below(limit)); }

  void expect_law(const BandExecutor& executor = BandExecutor()) const {
    check_laws(pointers_to(all), false, [&](const ContractCase& c, const Law& law) {
      SCOPED_TRACE(c.name);
      law.expect(AttentionBackend::sm90, executor);
    });
  }

  RandomSequence random;
  std::vector<ContractCase> all;
};

inline void widen(Case& call, int64_t dim) {
  call.dim = call.value_dim = dim;
}

}  // namespace flashloom::attention_test
