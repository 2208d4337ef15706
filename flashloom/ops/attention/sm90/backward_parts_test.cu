#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <span>
#include <vector>

#include "flashloom/ops/attention/attention_test_device.cuh"
#include "flashloom/ops/attention/attention_test_run.cuh"
#include "flashloom/ops/attention/sm90/backward_parts.cuh"

// The last tiles of keys of the backward kernel, of which several blocks walk one.

namespace flashloom {
namespace {

using attention_test::Case;
using attention_test::DeviceExecutor;
using attention_test::fresh_seed;
using attention_test::own_stream;

TEST(BackwardParts, LastRoundsAreSplitWhereTheyLeaveMultiprocessorsIdle) {
  struct Split {
    int64_t tiles;
    int32_t parts, last;
  };

  for (const Split& want : {Split{2048, 3, 84}, Split{2112, 4, 16}, Split{1984, 4, 20},
                            Split{2095, 1, 0}, Split{60, 2, 60}}) {
    const sm90::BackwardSplit split = sm90::split_tiles(want.tiles, 132);
    EXPECT_EQ(split.parts, want.parts) << want.tiles;
    EXPECT_EQ(split.tiles, want.last) << want.tiles;
    EXPECT_EQ(split.whole, want.tiles - want.last) << want.tiles;
  }
}

/// Runs the backward pass several times, with other bits in results and workspace before each.
struct RepeatingExecutor : DeviceExecutor {
 protected:
  void call_backward(const AttentionGradients& gradients, const AttentionInputs& inputs,
                     const AttentionSaved& saved, std::span<std::byte> workspace,
                     const AttentionOptions& options) const override {
    std::vector<std::vector<std::byte>> first;
    for (int i = 0; i < 8; ++i) {
      ASSERT_EQ(cudaMemsetAsync(workspace.data(), 0xff - i, workspace.size(), own_stream()),
                cudaSuccess);
      DeviceExecutor::call_backward(gradients, inputs, saved, workspace, options);
      int n = 0;
      for (const TensorView* result : {&gradients.dk, &gradients.dv}) {
        std::vector<std::byte> bits(static_cast<size_t>(result->bytes()));
        ASSERT_EQ(cudaMemcpyAsync(bits.data(), result->data, bits.size(), cudaMemcpyDeviceToHost,
                                  own_stream()),
                  cudaSuccess);
        ASSERT_EQ(cudaStreamSynchronize(own_stream()), cudaSuccess);
        if (i == 0) {
          first.push_back(bits);
        }
        EXPECT_TRUE(bits == first[static_cast<size_t>(n)]) << "dk, dv " << n << ", run " << i;
        ++n;
      }
    }
  }
};

// Whichever part of a tile ends last adds all of them up.
TEST(BackwardParts, HoldTheLawAndLeaveTheSameBits) {
  FLASHLOOM_NEEDS_GPU();
  // 140 tiles of keys, of which 24 of two heads are split.
  Case call = {.batch = 2,
               .heads = 5,
               .key_heads = 5,
               .queries = 5201,
               .keys = 1790,
               .dim = 128,
               .value_dim = 128,
               .dtype = DType::bf16,
               .seed = fresh_seed()};
  call.options.execution.multiprocessor_share = 0.03F;
  call.run(AttentionBackend::sm90, true, RepeatingExecutor(), DType::bf16, DType::bf16);
}

}  // namespace
}  // namespace flashloom
