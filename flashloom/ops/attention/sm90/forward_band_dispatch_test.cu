#include <gtest/gtest.h>

#include <cstdint>
#include <optional>
#include <utility>

#include "flashloom/ops/attention/sm90/forward_band_test_case.cuh"

// Which calls the Hopper forward kernel for narrow bands takes.

namespace flashloom {
namespace {

/// Shapes alone decide, so no GPU is needed.
struct Shapes {
  AttentionOutputs outputs;
  AttentionInputs inputs;
  AttentionOptions options;

  Shapes(int64_t queries, int64_t keys, int64_t dim, AttentionVisibility visibility) {
    const auto tensor = [](int64_t heads, int64_t rows, int64_t columns) {
      return TensorView(static_cast<void*>(nullptr), DType::bf16, {2, heads, rows, columns},
                        {Device::Kind::cuda, 0});
    };
    inputs = {tensor(8, queries, dim), tensor(2, keys, dim), tensor(2, keys, dim)};
    outputs.out = tensor(8, queries, dim);
    options.visibility = visibility;
  }

  std::optional<int32_t> shift() const {
    return attention_test::band_shift(outputs, inputs, options);
  }
};

TEST(ForwardBandDispatch, TakesWhatThreeTilesOfKeysHold) {
  const auto shift = [](int64_t dim, int64_t left, int64_t right, int64_t keys = 300) {
    return Shapes(300, keys, dim, {left, right}).shift();
  };
  EXPECT_EQ(shift(64, 64, 64), -1);
  EXPECT_EQ(shift(64, 0, 0), 0);
  EXPECT_EQ(shift(64, 128, 0), -2);
  EXPECT_EQ(shift(64, 0, 128), 0);
  EXPECT_EQ(shift(8, 65, 0), -2);
  EXPECT_EQ(shift(128, 64, 64), -1);
  EXPECT_EQ(shift(64, 64, 64, 364), 0) << "the default offset is a tile";
  for (const auto& [left, right] :
       {std::pair(65, 1), {64, 65}, {129, 0}, {0, 129}, {-1, 0}, {64, -1}, {-1, -1}}) {
    EXPECT_FALSE(shift(64, left, right)) << left << ", " << right;
  }
  EXPECT_FALSE(shift(64, 64, 64, 301)) << "an offset of 1 needs a fourth tile";
  EXPECT_FALSE(shift(136, 64, 64));
  EXPECT_FALSE(shift(64, 64, 64, 0)) << "no keys";
}

TEST(ForwardBandDispatch, TakesSequencesOfOneOffset) {
  Shapes shapes(300, 300, 64, {64, 64});
  const int32_t one[3] = {};
  const int32_t other[3] = {};
  const auto index = [](const int32_t* data) {
    return ConstTensorView(static_cast<const void*>(data), DType::i32, {2},
                           {Device::Kind::cuda, 0});
  };
  AttentionSequences& sequences = shapes.options.sequences;
  sequences.used_query = sequences.used_key = index(one);
  EXPECT_EQ(shapes.shift(), -1);
  sequences.used_key = index(other);
  EXPECT_FALSE(shapes.shift()) << "offsets that differ";
  shapes.options.positions.offset = 0;
  EXPECT_EQ(shapes.shift(), -1);
  sequences = {};
  shapes.options.positions = {};
  sequences.cu_query = sequences.cu_key = index(one);
  sequences.max_query = sequences.max_key = 300;
  EXPECT_EQ(shapes.shift(), -1);
  sequences.max_key = 299;
  EXPECT_FALSE(shapes.shift());
  sequences.cu_key = {};
  EXPECT_FALSE(shapes.shift());
}

}  // namespace
}  // namespace flashloom
