#include "flashloom/io/gguf.h"

#include <gmock/gmock.h>

#include <bit>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/io/gguf_builder_for_test.h"
#include "flashloom/io/gguf_dequantize.h"
#include "flashloom/io/safetensors.h"
#include "flashloom/io/temporary_directory_for_test.h"
#include "flashloom/io/utf8.h"

namespace flashloom {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::string kGolden = FLASHLOOM_SOURCE_DIR "/tests/golden/io/gguf_types";

class GgufTest : public ::testing::Test {
 protected:
  GgufFile parse(std::string_view content) {
    const std::string path = directory_ / "x.gguf";
    overwrite_for_test(path, content);
    return GgufFile(path);
  }

  std::string error_of(std::string_view content) {
    try {
      parse(content);
    } catch (const IoError& error) {
      return error.what();
    }
    return "no error";
  }

  const TemporaryDirectory directory_;
};

using Gguf = GgufTest;

TEST_F(Gguf, ReadsMetadataOfEveryKind) {
  const GgufFile file(kGolden + ".gguf");
  EXPECT_EQ(file.text("general.architecture"), "golden");
  EXPECT_EQ(file.integer("kinds.u8"), 200);
  EXPECT_EQ(file.integer("kinds.i8"), -100);
  EXPECT_EQ(file.integer("kinds.u16"), 60000);
  EXPECT_EQ(file.integer("kinds.i16"), -30000);
  EXPECT_EQ(file.integer("kinds.u32"), 4000000000);
  EXPECT_EQ(file.integer("kinds.i32"), -2000000000);
  EXPECT_EQ(file.integer("kinds.i64"), -1000000000000000000);
  EXPECT_EQ(std::get<uint64_t>(file.find("kinds.u64")->value), 10000000000000000000u);
  EXPECT_THROW(file.integer("kinds.u64"), IoError);
  EXPECT_EQ(file.number("kinds.f32"), 1e-5);
  EXPECT_EQ(file.number("kinds.f64"), 0.1);
  EXPECT_EQ(file.number("kinds.i8"), -100.0);
  EXPECT_EQ(file.boolean("kinds.bool"), true);
  EXPECT_EQ(file.text("kinds.string"), "weiß ☃");
  EXPECT_THAT(file.array("kinds.strings")->strings, ElementsAre("a", "", "ß"));
  EXPECT_EQ(file.array("kinds.integers")->integer(1), -2);
  EXPECT_EQ(file.array("kinds.integers")->integer(3), std::nullopt);
  EXPECT_EQ(file.array("kinds.floats")->count, 2u);
  EXPECT_EQ(file.array("kinds.floats")->integer(0), std::nullopt);

  EXPECT_EQ(file.integer("absent"), std::nullopt);
  EXPECT_EQ(file.array("absent"), nullptr);
  EXPECT_THROW(file.integer("kinds.string"), IoError);
  EXPECT_THROW(file.number("kinds.string"), IoError);
  EXPECT_THROW(file.text("kinds.u8"), IoError);
  EXPECT_THROW(file.boolean("kinds.u8"), IoError);
  EXPECT_THROW(file.array("kinds.u8"), IoError);
}

TEST_F(Gguf, DecodesEveryTypeBitForBit) {
  const GgufFile file(kGolden + ".gguf");
  const SafetensorsFile expected(kGolden + ".safetensors");
  ASSERT_EQ(file.tensors().size(), 11u);
  for (const GgufTensor& tensor : file.tensors()) {
    SCOPED_TRACE(tensor.name);
    EXPECT_EQ(tensor.name, tensor.type.name);
    ASSERT_THAT(tensor.shape, ElementsAre(3, 256));
    const float* wanted = expected.view(tensor.name).as<float>();
    const auto type = static_cast<GgmlType>(tensor.type.number);
    std::vector<float> values(3 * 256);
    gguf_dequantize(type, tensor.bytes, values);
    std::vector<float> row(256);
    const size_t row_bytes = tensor.bytes.size() / 3;
    gguf_dequantize(type, tensor.bytes.subspan(row_bytes, row_bytes), row);
    for (size_t i = 0; i < values.size(); ++i) {
      ASSERT_EQ(std::bit_cast<uint32_t>(values[i]), std::bit_cast<uint32_t>(wanted[i])) << i;
      if (i / 256 == 1) {
        ASSERT_EQ(row[i - 256], wanted[i]);
      }
    }
  }
}

TEST_F(Gguf, DecodesOnlyWholeBlocksOfKnownTypes) {
  std::vector<std::byte> bytes(100);
  std::vector<float> out(32);
  const std::span<const std::byte> block(bytes.data(), 20);
  EXPECT_NO_THROW(gguf_dequantize(GgmlType::q4_1, block, out));
  EXPECT_THROW(gguf_dequantize(GgmlType::q4_0, block, out), InvalidArgument);
  EXPECT_THROW(gguf_dequantize(GgmlType::q4_1, block, std::span(out).first(31)), InvalidArgument);
  EXPECT_THAT([&] { gguf_dequantize(static_cast<GgmlType>(23), block, out); },
              testing::ThrowsMessage<Unsupported>(
                  testing::AllOf(HasSubstr("IQ4_XS"), HasSubstr("supported are F32, F16"))));
}

TEST_F(Gguf, ReadsVersion2AndNestedArrays) {
  using B = GgufBuilder;
  GgufBuilder builder;
  builder.version = 2;
  const std::string inner = B::raw(uint32_t{0}) + B::raw(uint64_t{2}) + "\x05\x06";
  builder.add_raw("nested", GgufType::array,
                  B::raw(uint32_t{9}) + B::raw(uint64_t{2}) + inner + inner);
  const GgufFile file = parse(builder.build());
  ASSERT_EQ(file.array("nested")->arrays.size(), 2u);
  EXPECT_EQ(file.array("nested")->arrays[1].integer(1), 6);
}

TEST_F(Gguf, RespectsTheAlignment) {
  GgufBuilder builder;
  builder.alignment = 256;
  builder.add("general.alignment", 256u);
  builder.add_tensor("a", {1}, {1.0f}).add_tensor("b", {2, 1}, {2.0f, 3.0f});
  const GgufFile file = parse(builder.build());
  std::vector<float> values(2);
  gguf_dequantize(GgmlType::f32, file.find_tensor("b")->bytes, values);
  EXPECT_THAT(values, ElementsAre(2.0f, 3.0f));
  EXPECT_THAT(file.find_tensor("b")->shape, ElementsAre(2, 1));
  EXPECT_EQ(file.find_tensor("c"), nullptr);
  for (const uint32_t bad : {0u, 24u, 1u << 30}) {
    EXPECT_THAT(error_of(GgufBuilder().add("general.alignment", bad).build()),
                HasSubstr("general.alignment: expected a power of two"));
  }
}

TEST_F(Gguf, RefusesOtherFiles) {
  EXPECT_THAT(error_of(""), HasSubstr("expected a GGUF file"));
  EXPECT_THAT(error_of("GGML1234"), HasSubstr("expected a GGUF file"));
  GgufBuilder builder;
  builder.version = 1;
  EXPECT_THAT(error_of(builder.build()), HasSubstr("version 2 or 3, got 1"));
  builder.version = 3u << 24;
  EXPECT_THAT(error_of(builder.build()), HasSubstr("big-endian"));
}

TEST_F(Gguf, ChecksEveryCountBeforeUse) {
  using B = GgufBuilder;
  const uint64_t huge = uint64_t{1} << 62;
  const std::string head = "GGUF" + B::raw(uint32_t{3});
  EXPECT_THAT(error_of(head + B::raw(huge) + B::raw(uint64_t{0})), HasSubstr("number of tensors"));
  EXPECT_THAT(error_of(head + B::raw(uint64_t{0}) + B::raw(huge)), HasSubstr("metadata values"));
  const auto value = [&](GgufType type, const std::string& bytes) {
    return error_of(B().add_raw("key", type, bytes).header());
  };
  EXPECT_THAT(value(GgufType::string, B::raw(huge)), HasSubstr("a string needs"));
  EXPECT_THAT(value(GgufType::array, B::raw(uint32_t{8}) + B::raw(huge)), HasSubstr("an array"));
  EXPECT_THAT(value(GgufType::array, B::raw(uint32_t{12}) + B::raw(huge)), HasSubstr("an array"));
  EXPECT_THAT(value(GgufType::array, B::raw(uint32_t{9}) + B::raw(huge)), HasSubstr("an array"));
  EXPECT_THAT(value(GgufType::array, B::raw(uint32_t{13}) + B::raw(uint64_t{0})),
              HasSubstr("unknown type of value 13"));
  EXPECT_THAT(value(static_cast<GgufType>(99), ""), HasSubstr("unknown type of value 99"));
  EXPECT_THAT(value(GgufType::string, B::text("\xc0\x80")), HasSubstr("UTF-8"));
  std::string deep;
  for (int i = 0; i < 1000; ++i) {
    deep += B::raw(uint32_t{9}) + B::raw(uint64_t{1});
  }
  EXPECT_THAT(value(GgufType::array, deep), HasSubstr("nested deeper"));
  EXPECT_THAT(error_of(B().add("twice", 1u).add("twice", 2u).build()),
              HasSubstr("key given twice"));
}

TEST_F(Gguf, ChecksEveryTensor) {
  const auto entry = [&](const std::vector<uint64_t>& sizes, uint32_t type, uint64_t offset) {
    return error_of(
        GgufBuilder().add_entry("t", sizes, type, offset).add_data(std::string(64, 'x')).build());
  };
  EXPECT_EQ(entry({16}, 0, 0), "no error");
  EXPECT_THAT(entry({}, 0, 0), HasSubstr("tensor t: expected 1 to 4 dimensions, got 0"));
  EXPECT_THAT(entry({1, 1, 1, 1, 1}, 0, 0), HasSubstr("got 5"));
  EXPECT_THAT(entry({0}, 0, 0), HasSubstr("not a size"));
  EXPECT_THAT(entry({uint64_t{1} << 63}, 0, 0), HasSubstr("not a size"));
  EXPECT_THAT(entry({uint64_t{1} << 40, uint64_t{1} << 40}, 0, 0), HasSubstr("not a size"));
  EXPECT_THAT(entry({(uint64_t{1} << 62) + 16}, 0, 0), HasSubstr("overflows"));
  EXPECT_THAT(entry({16}, 4, 0), HasSubstr("unknown type 4; those supported are F32"));
  EXPECT_THAT(entry({16}, 2, 0), HasSubstr("not whole Q4_0 blocks of 32"));
  EXPECT_THAT(entry({17}, 0, 0), HasSubstr("beyond the 64 bytes of data"));
  EXPECT_THAT(entry({1}, 0, 64), HasSubstr("beyond"));
  EXPECT_THAT(entry({1}, 0, ~uint64_t{31}), HasSubstr("beyond"));
  EXPECT_THAT(entry({1}, 0, 4), HasSubstr("not a multiple of the alignment"));
  EXPECT_THAT(error_of(GgufBuilder()
                           .add_entry("t", {9}, 0, 0)
                           .add_entry("u", {8}, 0, 32)
                           .add_data(std::string(64, 'x'))
                           .build()),
              HasSubstr("tensor u: its data overlaps that of t"));
  EXPECT_THAT(error_of(GgufBuilder()
                           .add_entry("t", {8}, 0, 0)
                           .add_entry("t", {8}, 0, 32)
                           .add_data(std::string(64, 'x'))
                           .build()),
              HasSubstr("given twice"));
  EXPECT_THAT(error_of(GgufBuilder().add_entry("t", {8}, 0, 0).header()), HasSubstr("beyond"));
}

TEST_F(Gguf, SurvivesEveryFlippedBitAndEveryTruncation) {
  GgufBuilder builder;
  builder.add("general.alignment", 32u)
      .add("name", "x")
      .add("list", std::vector<std::string>{"ab", "c"});
  builder.add("numbers", std::vector<int32_t>{1, 2}).add("number", 0.5f).add_flag("flag", true);
  builder.add_tensor("a", {2, 2}, {1, 2, 3, 4}).add_tensor("b", {3}, {1, 2, 3});
  const std::string whole = builder.build();
  ASSERT_EQ(error_of(whole), "no error");
  const size_t header = builder.header().size();
  int refused = 0;
  for (size_t position = 0; position < header; ++position) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string mutant = whole;
      mutant[position] = static_cast<char>(mutant[position] ^ (1 << bit));
      refused += error_of(mutant) != "no error" ? 1 : 0;
    }
    EXPECT_NE(error_of(whole.substr(0, position)), "no error");
  }
  EXPECT_GT(refused, 1000);  // the rest changed a name or a value
}

TEST(Utf8, KnowsTheWellFormedSequences) {
  for (const char* good : {"", "a", "ß", "€", "\xed\x9f\xbf", "\xf4\x8f\xbf\xbf", "𝄞x"}) {
    EXPECT_TRUE(is_utf8(good)) << good;
  }
  for (const char* bad :
       {"\x80", "\xc0\x80", "\xc1\xbf", "\xe0\x9f\xbf", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf",
        "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xc3", "\xe2\x82", "\xc3x", "\xff"}) {
    EXPECT_FALSE(is_utf8(bad)) << bad;
  }
}

}  // namespace
}  // namespace flashloom
