#include "flashloom/io/safetensors.h"

#include <gmock/gmock.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <numeric>

#include "flashloom/core/error.h"
#include "flashloom/io/atomic_file.h"
#include "flashloom/io/safetensors_model.h"
#include "flashloom/io/safetensors_writer.h"
#include "flashloom/io/temporary_directory_for_test.h"

namespace flashloom {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string file_of(std::string_view header, std::string_view data) {
  const uint64_t length = header.size();
  std::string text(reinterpret_cast<const char*>(&length), sizeof(length));
  return text.append(header).append(data);
}

class SafetensorsTest : public ::testing::Test {
 protected:
  std::string write(std::string_view content) {
    const std::string path = directory_ / "x.safetensors";
    overwrite_for_test(path, content);
    return path;
  }

  std::string error_of(std::string_view content) {
    try {
      SafetensorsFile file(write(content));
    } catch (const IoError& error) {
      return error.what();
    }
    return "no error";
  }

  const TemporaryDirectory directory_;
};

using Safetensors = SafetensorsTest;

TEST_F(Safetensors, ReadsBackWhatItWrote) {
  std::vector<float> wide(6);
  std::iota(wide.begin(), wide.end(), 0.5f);
  const std::vector<bf16> narrow = {bf16(1.0f), bf16(-2.0f), bf16(3.0f)};
  const std::vector<int64_t> whole = {7};
  const std::vector<uint8_t> bytes = {1, 2, 3};
  const std::string path = directory_ / "x.safetensors";
  SafetensorsWriter writer(path, {{"bytes", DType::u8, {3}},
                                  {"narrow", DType::bf16, {3, 1}},
                                  {"wide", DType::f32, {2, 3}},
                                  {"whole", DType::i64, {}},
                                  {"empty", DType::f32, {0, 4}}});
  writer.write("narrow", ConstTensorView(narrow.data(), {3, 1}));
  writer.write("wide", ConstTensorView(wide.data(), {2, 3}));
  writer.write("bytes", ConstTensorView(bytes.data(), {3}));
  writer.write("whole", ConstTensorView(whole.data(), DType::i64, {}));
  writer.write("empty", ConstTensorView(wide.data(), {0, 4}));
  EXPECT_FALSE(std::filesystem::exists(path));
  writer.finish();

  const SafetensorsFile file(path);
  EXPECT_EQ(file.tensors().size(), 5u);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(describe(file.view("wide")), "(2, 3) f32");
  EXPECT_EQ(file.view("wide").select(0, 1).as<float>()[2], 5.5f);
  EXPECT_EQ(static_cast<float>(file.view("narrow").as<bf16>()[1]), -2.0f);
  EXPECT_EQ(file.view("whole").as<int64_t>()[0], 7);
  EXPECT_EQ(file.view("bytes").as<uint8_t>()[2], 3);
  EXPECT_EQ(file.view("empty").size(), 0);
  EXPECT_EQ(file.find("absent"), nullptr);
  EXPECT_THROW(file.view("absent"), IoError);
}

TEST_F(Safetensors, ConvertsWhileWriting) {
  const int64_t count = (1 << 16) + 5;  // more than one chunk
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; ++i) {
    values[i] = std::sin(static_cast<float>(i));
  }
  const std::string path = directory_ / "x.safetensors";
  SafetensorsWriter writer(path, {{"a", DType::bf16, {count}}, {"b", DType::f16, {count}}});
  writer.write("a", ConstTensorView(values.data(), {count}));
  writer.write("b", ConstTensorView(values.data(), {count}));
  writer.finish();
  const SafetensorsFile file(path);
  for (int64_t i = 0; i < count; ++i) {
    ASSERT_EQ(file.view("a").as<bf16>()[i].bits, bf16(values[i]).bits);
    ASSERT_EQ(file.view("b").as<f16>()[i].bits, f16(values[i]).bits);
  }
}

TEST_F(Safetensors, WritesOnlyWhatWasAnnounced) {
  const std::vector<float> values(4);
  const std::vector<int32_t> whole(4);
  const ConstTensorView view(values.data(), {4});
  SafetensorsWriter writer(directory_ / "x.safetensors",
                           {{"a", DType::f32, {4}}, {"b", DType::f32, {4}}});
  EXPECT_THROW(writer.write("c", view), InvalidArgument);
  EXPECT_THROW(writer.write("a", view.reshape({2, 2})), InvalidArgument);
  EXPECT_THROW(writer.write("a", ConstTensorView(whole.data(), {4})), InvalidArgument);
  writer.write("a", view);
  EXPECT_THROW(writer.write("a", view), InvalidArgument);
  EXPECT_THROW(writer.finish(), InvalidArgument);
  EXPECT_THROW(SafetensorsWriter(directory_ / "y", {{"a", DType::f32, {4}}, {"a", DType::f32, {}}}),
               InvalidArgument);
  EXPECT_THROW(
      SafetensorsWriter(directory_ / "y", {{"a", DType::f32, {int64_t{1} << 40, 1 << 30}}}),
      InvalidArgument);
}

TEST_F(Safetensors, SplitsAModelIntoShards) {
  const std::vector<float> values = {1, 2, 3, 4};
  const auto write_model = [&](int64_t limit) {
    SafetensorsModelWriter writer(
        directory_.path(),
        {{"a", DType::f32, {4}}, {"b", DType::bf16, {4}}, {"c", DType::f32, {2, 2}}}, limit);
    for (const char* name : {"a", "b"}) {
      writer.write(name, ConstTensorView(values.data(), {4}));
    }
    writer.write("c", ConstTensorView(values.data(), {2, 2}));
    writer.finish();
  };
  write_model(24);
  EXPECT_TRUE(std::filesystem::exists(directory_ / "model-00002-of-00002.safetensors"));
  {
    const SafetensorsModel model(directory_.path());
    ASSERT_EQ(model.files().size(), 2u);
    ASSERT_EQ(model.tensors().size(), 3u);
    EXPECT_EQ(model.files()[1].view("c").as<float>()[3], 4.0f);
  }
  write_model(1000);  // the index of before would hide the new file
  EXPECT_FALSE(std::filesystem::exists(directory_ / "model.safetensors.index.json"));
  EXPECT_EQ(SafetensorsModel(directory_.path()).files().size(), 1u);
  write_model(1);
  EXPECT_FALSE(std::filesystem::exists(directory_ / "model.safetensors"));
  EXPECT_EQ(SafetensorsModel(directory_.path()).files().size(), 3u);
}

TEST_F(Safetensors, RefusesABadIndex) {
  const auto error_with = [&](std::string_view index) -> std::string {
    write_file_atomically(directory_ / "model.safetensors.index.json", index);
    try {
      SafetensorsModel model(directory_.path());
    } catch (const IoError& error) {
      return error.what();
    }
    return "no error";
  };
  EXPECT_THROW(SafetensorsModel model(directory_.path()), IoError);
  write_file_atomically(directory_ / "s",
                        file_of(R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}})", "x"));
  EXPECT_EQ(error_with(R"({"weight_map": {"a": "s"}})"), "no error");
  EXPECT_THAT(error_with(R"({"weight_map": {"b": "s"}})"), HasSubstr("s: tensor b: missing"));
  EXPECT_THAT(error_with(R"({"weight_map": {"a": "t"}})"), HasSubstr("/t: open"));
  EXPECT_THAT(error_with(R"({"weight_map": {"a": "../s"}})"), HasSubstr("same directory"));
  EXPECT_THAT(error_with(R"({"weight_map": {"a": 3}})"), HasSubstr("expected a file name"));
  EXPECT_THAT(error_with(R"({"weight_map": [1]})"), HasSubstr("weight_map"));
  EXPECT_THAT(error_with(R"([])"), HasSubstr("weight_map"));
}

TEST_F(Safetensors, RefusesAHostileHeader) {
  const auto with = [&](std::string_view header) { return error_of(file_of(header, "12345678")); };
  EXPECT_EQ(with(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})"), "no error");
  EXPECT_THAT(error_of(""), HasSubstr("expected 8 bytes"));
  EXPECT_THAT(error_of(std::string(8, '\xff') + "{}"),
              HasSubstr("header length 18446744073709551615"));
  EXPECT_THAT(error_of(std::string("\x03\0\0\0\0\0\0\0{}", 10)), HasSubstr("header length 3"));
  EXPECT_THAT(with("[]"), HasSubstr("JSON object"));
  EXPECT_THAT(with("{}"), HasSubstr("take 0 bytes of data, the file has 8"));
  EXPECT_THAT(with(R"({"a":3})"), HasSubstr("tensor a: expected a JSON object"));
  EXPECT_THAT(with(R"({"a":{"dtype":"Q9","shape":[2],"data_offsets":[0,8]}})"),
              HasSubstr("x.safetensors: tensor a: unknown dtype \"Q9\""));
  EXPECT_THAT(with(R"({"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}})"),
              HasSubstr("need 12 bytes, data_offsets give 8"));
  EXPECT_THAT(with(R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}})"),
              HasSubstr("shape"));
  EXPECT_THAT(with(R"({"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}})"),
              HasSubstr("shape"));
  // 2^62 * 32 bits * … wraps to the right number without the overflow check.
  EXPECT_THAT(with(R"({"a":{"dtype":"F32","shape":[4611686018427387905,2],"data_offsets":[0,8]}})"),
              HasSubstr("overflows"));
  EXPECT_THAT(with(R"({"a":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,8]}})"),
              HasSubstr("overflows"));
  EXPECT_THAT(with(R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})"),
              HasSubstr("outside the 8 bytes"));
  EXPECT_THAT(with(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})"),
              HasSubstr("outside"));
  EXPECT_THAT(with(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}})"),
              HasSubstr("two integers"));
  EXPECT_THAT(with(R"({"a":{"shape":[2],"data_offsets":[0,8]}})"), HasSubstr("dtype is missing"));
  EXPECT_THAT(with(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
                       "b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})"),
              HasSubstr("tensor b: begins at byte 0 of the data, overlapping"));
  EXPECT_THAT(with(R"({"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},
                       "b":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})"),
              HasSubstr("leaving a hole after byte 3"));
  EXPECT_THAT(with(R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
                       "a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})"),
              HasSubstr("given twice"));
  EXPECT_THAT(with("{\"\xff\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}"),
              HasSubstr("malformed JSON"));
  EXPECT_THAT(with(R"({"__metadata__":{"a":1}})"), HasSubstr("__metadata__: a: expected a string"));
  EXPECT_THAT(with(std::string(1 << 20, '[')), HasSubstr("nested deeper"));
}

TEST_F(Safetensors, GivesNoViewOfWhatCannotBeAddressed) {
  const std::string path = write(file_of(
      R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
          "b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]},
          "c":{"dtype":"BOOL","shape":[1],"data_offsets":[5,6]},
          "d":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1],"data_offsets":[6,7]}})",
      "1234567"));
  const SafetensorsFile file(path);
  EXPECT_EQ(file.view("a").as<uint8_t>()[0], '1');
  EXPECT_EQ(file.find("d")->shape.size(), 8u);
  EXPECT_THROW(file.view("c"), IoError);
  EXPECT_THROW(file.view("d"), IoError);
  const auto address = reinterpret_cast<uintptr_t>(file.find("b")->bytes.data());
  if (address % alignof(float) != 0) {
    EXPECT_THROW(file.view("b"), IoError);
  } else {
    EXPECT_NO_THROW(file.view("b"));
  }
}

TEST_F(Safetensors, SurvivesEveryFlippedBitAndEveryTruncation) {
  const std::string whole =
      file_of(R"({"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,1],)"
              R"("data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[1],"data_offsets":[8,10]}})",
              "0123456789");
  ASSERT_EQ(error_of(whole), "no error");
  int refused = 0;
  for (size_t position = 0; position + 10 < whole.size(); ++position) {
    for (int bit = 0; bit < 8; ++bit) {
      std::string mutant = whole;
      mutant[position] = static_cast<char>(mutant[position] ^ (1 << bit));
      refused += error_of(mutant) != "no error" ? 1 : 0;
    }
    EXPECT_NE(error_of(whole.substr(0, position)), "no error");
  }
  EXPECT_GT(refused, 800);  // the rest changed a name, or nothing that matters
}

}  // namespace
}  // namespace flashloom
