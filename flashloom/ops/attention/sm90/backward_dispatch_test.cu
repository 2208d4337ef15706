#include <gtest/gtest.h>

#include <initializer_list>
#include <string>
#include <tuple>

#include "flashloom/ops/attention/attention.h"

// What the Hopper backward leaves to the portable kernels says so by name. Shapes alone decide, so
// no GPU is needed.

namespace flashloom {
namespace {

TensorView tensor(DType dtype, std::initializer_list<int64_t> shape) {
  return TensorView(static_cast<void*>(nullptr), dtype, shape, {Device::Kind::cuda, 0});
}

struct Call {
  AttentionGradients gradients;
  AttentionInputs inputs;
  AttentionSaved saved;
  AttentionOptions options;

  explicit Call(int64_t dim) {
    const TensorView rows = tensor(DType::bf16, {2, 8, 300, dim});
    gradients = {.dq = rows, .dk = rows, .dv = rows};
    inputs = {rows, rows, rows};
    saved = {.out = rows, .lse = tensor(DType::f32, {2, 8, 300}), .dout = rows};
  }

  void mask(int64_t block_rows, int64_t block_keys) {
    AttentionBlocks& blocks = options.blocks;
    blocks.block_rows = block_rows;
    blocks.block_keys = block_keys;
    blocks.row_offsets = tensor(DType::i32, {1, 8, (299 + block_rows) / block_rows + 1});
    blocks.column_offsets = tensor(DType::i32, {1, 8, (299 + block_keys) / block_keys + 1});
    blocks.columns = blocks.rows = tensor(DType::i32, {1, 8, 6});
  }

  std::string outcome() const {
    const AttentionChoice choice = attention_backward_backend(gradients, inputs, saved, options);
    return std::string(attention_backend_name(choice.backend)) + ": " + choice.reason;
  }
};

void expect_portable_for(const Call& call, const std::string& reason) {
  const std::string outcome = call.outcome();
  EXPECT_NE(outcome.find("portable: "), std::string::npos) << outcome;
  EXPECT_NE(outcome.find(reason), std::string::npos) << outcome;
}

TEST(BackwardDispatch, BlockMasks) {
  Call wide(192);
  wide.mask(128, 128);
  expect_portable_for(wide, "a block mask with head dimension 192");
  Call odd(64);
  odd.mask(32, 128);
  expect_portable_for(odd, "a block mask of 32 x 128 that is no multiple of 64 x 128");
  Call taken(128);
  taken.mask(64, 256);
  EXPECT_EQ(taken.outcome().substr(0, 4), "sm90") << taken.outcome();
}

TEST(BackwardDispatch, Bias) {
  Call call(128);
  call.options.score.bias = tensor(DType::f32, {1, 8, 300, 300});
  call.gradients.dbias = tensor(DType::f32, {1, 8, 300, 300});
  expect_portable_for(call, "bias");
}

TEST(BackwardDispatch, Entropy) {
  for (const auto& [dim, order, reason] :
       {std::tuple(int64_t{128}, 2.0f, "dentropy of another order than 1"),
        std::tuple(int64_t{192}, 1.0f, "dentropy with head dimension 192")}) {
    Call call(dim);
    call.saved.entropy = call.saved.dentropy = tensor(DType::f32, {2, 8, 300});
    call.saved.entropy_order = order;
    expect_portable_for(call, reason);
  }
}

}  // namespace
}  // namespace flashloom
