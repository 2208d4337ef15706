#include "flashloom/io/gguf_writer.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <limits>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/philox.h"
#include "flashloom/io/gguf.h"
#include "flashloom/io/gguf_dequantize.h"
#include "flashloom/io/mapped_file.h"
#include "flashloom/io/temporary_directory_for_test.h"
#include "flashloom/io/tensor_decoder.h"

namespace flashloom {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::ThrowsMessage;

std::vector<float> random_numbers(size_t count) {
  RandomSequence random(3, RandomStream::test);
  std::vector<float> values(count);
  for (float& value : values) {
    value = random.normal();
  }
  return values;
}

TEST(GgufWriter, WritesWhatTheReaderReads) {
  const TemporaryDirectory folder;
  const std::string path = folder / "x.gguf";
  GgufMetadata metadata;
  metadata.add("general.architecture", "test");
  metadata.add("a.u32", uint32_t{4000000000});
  metadata.add("a.f32", 1e-5f);
  metadata.add_flag("a.flag", true);
  const std::vector<std::string> names = {"a", "", "weiß"};
  metadata.add("a.texts", std::span<const std::string>(names));
  const std::vector<int32_t> numbers = {1, -2, 3};
  metadata.add("a.numbers", std::span<const int32_t>(numbers));
  const std::vector<float> matrix = random_numbers(6 * 64);
  const std::vector<float> vector = random_numbers(5);
  {
    GgufWriter writer(path, metadata,
                      {{.name = "vector", .shape = {5}},
                       {.name = "matrix", .type = GgmlType::q8_0, .shape = {6, 64}}});
    writer.write("matrix", ConstTensorView(matrix.data(), {6, 64}));
    writer.write("vector", ConstTensorView(vector.data(), {5}));
    EXPECT_FALSE(std::filesystem::exists(path)) << "appeared before it was whole";
    writer.finish();
  }
  const GgufFile file(path);
  EXPECT_EQ(file.text("general.architecture"), "test");
  EXPECT_EQ(file.integer("a.u32"), 4000000000);
  EXPECT_EQ(file.number("a.f32"), 1e-5);
  EXPECT_EQ(file.boolean("a.flag"), true);
  EXPECT_THAT(file.array("a.texts")->strings, ElementsAre("a", "", "weiß"));
  EXPECT_EQ(file.array("a.numbers")->integer(1), -2);
  ASSERT_EQ(file.tensors().size(), 2u);
  const GgufTensor& stored = *file.find_tensor("matrix");
  EXPECT_THAT(stored.shape, ElementsAre(6, 64));
  std::vector<float> read(matrix.size());
  gguf_dequantize(GgmlType::q8_0, stored.bytes, read);
  for (size_t i = 0; i < matrix.size(); ++i) {
    EXPECT_NEAR(read[i], matrix[i], 0.02);
  }
  std::vector<float> read_vector(vector.size());
  gguf_dequantize(GgmlType::f32, file.find_tensor("vector")->bytes, read_vector);
  EXPECT_EQ(read_vector, vector);
  EXPECT_EQ(MappedFile(path).bytes().size() % 32, 0u);
}

TEST(GgufWriter, InterleavesHeadsAsTheReaderUndoes) {
  const TemporaryDirectory folder;
  const std::string path = folder / "x.gguf";
  const std::vector<float> matrix = random_numbers(12 * 32);  // 2 heads of 6 rows
  const std::vector<float> bias = random_numbers(12);
  GgufWriter writer(path, {},
                    {{.name = "q", .shape = {12, 32}, .interleaved_heads = 2},
                     {.name = "b", .shape = {12}, .interleaved_heads = 2}});
  writer.write("q", ConstTensorView(matrix.data(), {12, 32}));
  writer.write("b", ConstTensorView(bias.data(), {12}));
  writer.finish();
  const GgufFile file(path);
  const auto decoded = [&](const char* name, TensorView out) {
    const GgufTensor& tensor = *file.find_tensor(name);
    EncodedTensor encoded;
    encoded.bytes = tensor.bytes;
    encoded.ggml = find_ggml_type(tensor.type.number);
    encoded.interleaved_heads = 2;
    decode_tensor(encoded, out, false);
  };
  std::vector<float> read(matrix.size());
  decoded("q", TensorView(read.data(), {12, 32}));
  EXPECT_EQ(read, matrix);
  std::vector<float> read_bias(bias.size());
  decoded("b", TensorView(read_bias.data(), {12}));
  EXPECT_EQ(read_bias, bias);
  // Row 1 of the file is the first of the first head's second half.
  const float* stored = reinterpret_cast<const float*>(file.find_tensor("b")->bytes.data());
  EXPECT_EQ(stored[1], bias[3]);
  for (int64_t row = 0; row < 12; ++row) {
    EXPECT_EQ(interleaved_row(half_split_row(row, 12, 2), 12, 2), row);
  }
}

TEST(GgufWriter, WritesTheSameBytesWithAnyNumberOfThreads) {
  const TemporaryDirectory folder;
  const std::vector<float> matrix = random_numbers(300 * 256);
  std::string first;
  for (const int threads : {1, 3}) {
    set_thread_count(threads);
    const std::string path = folder / "x.gguf";
    GgufWriter writer(path, {}, {{.name = "m", .type = GgmlType::q4_k, .shape = {300, 256}}});
    writer.write("m", ConstTensorView(matrix.data(), {300, 256}));
    writer.finish();
    const std::string bytes(MappedFile(path).text());
    if (first.empty()) {
      first = bytes;
    }
    EXPECT_EQ(bytes, first) << threads << " threads";
  }
  set_thread_count(0);
}

TEST(GgufWriter, RefusesWhatDoesNotMatch) {
  const TemporaryDirectory folder;
  const std::string path = folder / "x.gguf";
  std::vector<float> matrix(4 * 32, 1.0f);
  const ConstTensorView view(matrix.data(), {4, 32});
  const auto with = [&](GgufEntry entry) { return GgufWriter(path, {}, {std::move(entry)}); };
  EXPECT_THAT([&] { with({.name = "m", .type = GgmlType::q4_k, .shape = {4, 32}}); },
              ThrowsMessage<InvalidArgument>(HasSubstr("rows of whole Q4_K blocks of 256")));
  EXPECT_THAT([&] { with({.name = "m", .type = GgmlType::q6_k, .shape = {1, 256}}); },
              ThrowsMessage<InvalidArgument>(HasSubstr("Q6_K")));
  EXPECT_THAT([&] { with({.name = "m", .shape = {4, 31}}).write("m", view); },
              ThrowsMessage<InvalidArgument>(HasSubstr("(4, 31)")));
  EXPECT_THAT([&] { with({.name = "m", .shape = {4, 32}}).write("n", view); },
              ThrowsMessage<InvalidArgument>(HasSubstr("unknown name")));
  EXPECT_THAT([&] { with({.name = "m", .shape = {4, 32}}).finish(); },
              ThrowsMessage<InvalidArgument>(HasSubstr("every announced tensor")));
  matrix[77] = 70000;
  EXPECT_THAT(
      [&] { with({.name = "m", .type = GgmlType::f16, .shape = {4, 32}}).write("m", view); },
      ThrowsMessage<InvalidArgument>(HasSubstr("numbers that F16 can hold")));
  matrix[77] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_THAT([&] { with({.name = "m", .shape = {4, 32}}).write("m", view); },
              ThrowsMessage<InvalidArgument>(HasSubstr("NaN")));
  EXPECT_FALSE(std::filesystem::exists(path));
  EXPECT_TRUE(std::filesystem::is_empty(folder.path())) << "a temporary file is left";
}

}  // namespace
}  // namespace flashloom
