#include "flashloom/io/gguf_quantize.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/core/philox.h"
#include "flashloom/io/gguf_dequantize.h"
#include "flashloom/io/safetensors.h"

namespace flashloom {
namespace {

using testing::HasSubstr;
using testing::ThrowsMessage;

constexpr GgmlType kTypes[] = {GgmlType::f32,  GgmlType::f16,  GgmlType::bf16, GgmlType::q8_0,
                               GgmlType::q5_0, GgmlType::q4_0, GgmlType::q4_k};

const GgmlTypeInfo& info(GgmlType type) {
  return *find_ggml_type(static_cast<uint32_t>(type));
}

std::vector<std::byte> quantized(GgmlType type, const std::vector<float>& values) {
  const auto elements = static_cast<int64_t>(values.size());
  std::vector<std::byte> blocks(
      static_cast<size_t>(elements / info(type).block_elements * info(type).block_bytes));
  gguf_quantize(type, values, blocks);
  return blocks;
}

// ggml's reference functions wrote the blocks (tools/make_gguf_quantised_golden.py).
TEST(GgufQuantize, WritesTheBlocksOfTheReferenceBitForBit) {
  const SafetensorsFile golden(FLASHLOOM_SOURCE_DIR "/tests/golden/io/gguf_quantised.safetensors");
  const ConstTensorView values = golden.view("values");
  ASSERT_EQ(values.dim(1), 256);
  for (const GgmlType type : kTypes) {
    if (type == GgmlType::f32) {
      continue;
    }
    const ConstTensorView expected = golden.view(info(type).name);
    for (int64_t row = 0; row < values.dim(0); ++row) {
      const float* x = values.select(0, row).as<float>();
      const std::vector<std::byte> blocks = quantized(type, {x, x + values.dim(1)});
      ASSERT_EQ(static_cast<int64_t>(blocks.size()), expected.dim(1)) << info(type).name;
      const auto* want = static_cast<const std::byte*>(expected.select(0, row).data);
      EXPECT_TRUE(std::equal(blocks.begin(), blocks.end(), want))
          << info(type).name << " row " << row;
    }
  }
}

// Half a step of each type, by its definition: of the block's largest number for the symmetric
// types, of the range for Q4_K, whose steps are themselves rounded to a 63rd of the largest.
TEST(GgufQuantize, IsReadBackWithinItsStep) {
  RandomSequence random(7, RandomStream::test);
  std::vector<float> values(1024);
  for (float& value : values) {
    value = 0.05f * random.normal();
  }
  const auto worst_of = [&](GgmlType type) {
    std::vector<float> read(values.size());
    gguf_dequantize(type, quantized(type, values), read);
    double worst = 0;
    for (size_t i = 0; i < values.size(); i += 32) {
      double largest = 0;
      double error = 0;
      for (size_t j = i; j < i + 32; ++j) {
        largest = std::max<double>(largest, std::fabs(values[j]));
        error = std::max<double>(error, std::fabs(values[j] - read[j]));
      }
      worst = std::max(worst, error / largest);
    }
    return worst;
  };
  EXPECT_EQ(worst_of(GgmlType::f32), 0);
  EXPECT_LT(worst_of(GgmlType::f16), 0x1p-11);
  EXPECT_LT(worst_of(GgmlType::bf16), 0x1p-8);
  EXPECT_LT(worst_of(GgmlType::q8_0), 0.5 / 127 + 0x1p-11);
  // The end of the range that is not reached loses a whole step.
  EXPECT_LT(worst_of(GgmlType::q5_0), 1.0 / 16 + 0x1p-10);
  EXPECT_LT(worst_of(GgmlType::q4_0), 1.0 / 8 + 0x1p-10);
  EXPECT_LT(worst_of(GgmlType::q4_k), 2.0 / 15);
}

TEST(GgufQuantize, TakesNumbersTooSmallForAScale) {
  for (const GgmlType type : kTypes) {
    const std::vector<float> tiny(256, 1e-40f);
    std::vector<float> read(tiny.size());
    gguf_dequantize(type, quantized(type, tiny), read);
    for (const float value : read) {
      EXPECT_LE(std::fabs(value), 1e-37f) << info(type).name;
    }
  }
}

TEST(GgufQuantize, SaysWhatItExpects) {
  std::vector<float> values(100);
  std::vector<std::byte> blocks(200);
  EXPECT_THAT([&] { gguf_quantize(GgmlType::q8_0, values, blocks); },
              ThrowsMessage<InvalidArgument>(HasSubstr("whole Q8_0 blocks for 100 elements")));
  EXPECT_THAT([&] { gguf_quantize(GgmlType::q6_k, values, blocks); },
              ThrowsMessage<Unsupported>(HasSubstr("Q6_K")));
}

}  // namespace
}  // namespace flashloom
