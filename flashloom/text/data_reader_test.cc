#include "flashloom/text/data_reader.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/text/json_value.h"

namespace flashloom {
namespace {

// A file that is gone when the test ends.
class TemporaryFile {
 public:
  TemporaryFile(const std::string& ending, std::string_view content)
      : path_(std::filesystem::path(testing::TempDir()) /
              (std::string("data_reader_") +
               testing::UnitTest::GetInstance()->current_test_info()->name() + ending)) {
    std::ofstream(path_, std::ios::binary) << content;
  }

  ~TemporaryFile() { std::filesystem::remove(path_); }

  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;

  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

std::vector<DataRow> rows_of(const std::string& ending, std::string_view content) {
  const TemporaryFile file(ending, content);
  std::vector<DataRow> rows;
  read_data(file.path(), [&](DataRow&& row) { rows.push_back(std::move(row)); });
  return rows;
}

// What the error says behind the file's name.
std::string failure(std::string_view content, const std::string& ending = ".jsonl") {
  try {
    rows_of(ending, content);
  } catch (const IoError& error) {
    const std::string what = error.what();
    return what.substr(what.find(": ") + 2);
  }
  return "read";
}

std::string nested(size_t depth) {
  return R"({"text": "x", "extra": )" + std::string(depth, '[') + std::string(depth, ']') + "}";
}

TEST(DataReader, ReadsEveryFormat) {
  const auto rows =
      rows_of(".jsonl",
              "\xEF\xBB\xBF{\"text\": \"a\\u00e9\", \"id\": 1}\r\n\n"
              "{\"prompt\": \"p\", \"completion\": \"c\"}\n"
              "{\"instruction\": \"i\", \"input\": \"\", \"output\": \"o\"}\n"
              "{\"instruction\": \"i\", \"input\": \"x\", \"output\": \"o\", \"text\": \"t\"}\n"
              "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}], \"tools\": [{}]}\n"
              "{\"conversations\": [{\"from\": \"system\", \"value\": \"s\"}, {\"from\": "
              "\"human\", \"value\": \"h\"}, {\"from\": \"gpt\", \"value\": \"g\"}]}");
  ASSERT_EQ(rows.size(), 6u);
  EXPECT_EQ(rows[0].kind, DataRowKind::text);
  EXPECT_EQ(rows[0].text, "aé");
  EXPECT_EQ(rows[0].line, 1);
  EXPECT_EQ(rows[1].kind, DataRowKind::prompt_completion);
  EXPECT_EQ(rows[1].prompt + rows[1].completion, "pc");
  EXPECT_EQ(rows[1].line, 3);
  EXPECT_EQ(rows[2].prompt,
            "Below is an instruction that describes a task. Write a response that appropriately "
            "completes the request.\n\n### Instruction:\ni\n\n### Response:\n");
  EXPECT_EQ(rows[3].prompt,
            "Below is an instruction that describes a task, paired with an input that provides "
            "further context. Write a response that appropriately completes the request.\n\n### "
            "Instruction:\ni\n\n### Input:\nx\n\n### Response:\n");
  EXPECT_EQ(rows[3].completion, "o");
  EXPECT_EQ(rows[4].kind, DataRowKind::messages);
  EXPECT_EQ(rows[4].tools.list()->items.size(), 1u);
  const auto& turns = rows[5].messages.list()->items;
  ASSERT_EQ(turns.size(), 3u);
  EXPECT_EQ(*turns[0].dict()->find("role")->string(), "system");
  EXPECT_EQ(*turns[1].dict()->find("role")->string(), "user");
  EXPECT_EQ(*turns[2].dict()->find("role")->string(), "assistant");
  EXPECT_EQ(*turns[2].dict()->find("content")->string(), "g");
}

TEST(DataReader, ReadsATextFileAsOneDocument) {
  const auto rows = rows_of(".txt", "one\ntwo\n\nthree\n");
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_EQ(rows[0].kind, DataRowKind::document);
  EXPECT_EQ(rows[0].text, "one\ntwo\n\nthree");
}

TEST(DataReader, ReadsLinesLongerThanItsBuffer) {
  const std::string longest(3 << 20, 'x');  // three times the buffer's first size
  const std::string row = R"({"text": ")" + longest + "\"}";
  const std::string small = R"({"text": "small"})";
  std::string content;
  for (int i = 0; i < 3; ++i) {
    content += small + "\n" + row + "\r\n";
  }
  const auto rows = rows_of(".jsonl", content + small);
  ASSERT_EQ(rows.size(), 7u);
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_TRUE(rows[i].text == (i % 2 == 0 ? "small" : longest)) << i;
    EXPECT_EQ(rows[i].line, static_cast<int64_t>(i) + 1);
    EXPECT_EQ(rows[i].hash, rows[i % 2].hash);
    EXPECT_EQ(rows[i].bytes, static_cast<int64_t>(i % 2 == 0 ? small.size() : row.size()));
  }
  EXPECT_NE(rows[0].hash, rows[1].hash);
}

TEST(DataReader, ReadsATextFileOfManyMegabytesInRowsThatAreItsText) {
  std::string text = "\n";
  while (text.size() < (10U << 20)) {
    text += text.size() % 3 == 0 ? "\n\n" : "a line of words\n";
  }
  text += "end";
  const auto rows = rows_of(".txt", text);
  ASSERT_GE(rows.size(), 2u);
  std::string joined;
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_EQ(rows[i].begins, i == 0);
    EXPECT_EQ(rows[i].ends, i + 1 == rows.size());
    EXPECT_LT(rows[i].text.size(), 5U << 20);
    joined += rows[i].text;
  }
  EXPECT_TRUE(joined == text);
}

TEST(DataReader, NamesFileLineAndFault) {
  EXPECT_EQ(failure("{\"text\": \"a\"}\n{\"text\": \"b\""), "line 2: invalid JSON");
  EXPECT_EQ(failure("{\"text\": \"a\xff\"}"), "line 1: invalid UTF-8");
  EXPECT_EQ(failure("{\"text\": \"a\" \"b\"}"), "line 1: invalid JSON");
  EXPECT_EQ(failure("{\"text\": \"a\"} x"), "line 1: invalid JSON");
  EXPECT_EQ(failure("[1]"), "line 1: expected a JSON object, got list");
  EXPECT_EQ(failure("{\"text\": 1}"), "line 1: `text`: expected a string, got int");
  EXPECT_EQ(failure("{\"prompt\": \"a\"}"), "line 1: the field `completion` is missing");
  EXPECT_EQ(failure("{\"prompt\": \"a\", \"completion\": \"b\", \"text\": \"c\"}"),
            "line 1: the row has fields of two formats: prompt + completion and text");
  EXPECT_EQ(failure("{\"messages\": []}"),
            "line 1: `messages`: expected a list of messages, got an empty list");
  EXPECT_EQ(failure("{\"messages\": \"hi\"}"),
            "line 1: `messages`: expected a list of messages, got str");
  EXPECT_EQ(failure("{\"messages\": [{\"role\": \"user\"}, {\"content\": \"x\"}]}"),
            "line 1: `messages[1]`: expected an object with a string `role`");
  EXPECT_EQ(failure("{\"conversations\": [{\"from\": \"human\", \"value\": null}]}"),
            "line 1: `value`: expected a string, got None");
  EXPECT_EQ(failure("{\"messages\": [{\"role\": \"user\"}], \"tools\": {}}"),
            "line 1: `tools`: expected a list, got dict");
  EXPECT_EQ(failure("{\"text\": \"a\", \"n\": 99999999999999999999}"),
            "line 1: invalid JSON: a wrong or too large number");
  EXPECT_EQ(failure("{\"text\": \"a\", \"n\": 18446744073709551615}"),
            "line 1: the number 18446744073709551615 does not fit 64 bits with a sign");
  EXPECT_EQ(failure(""), "the file holds no rows");
  EXPECT_EQ(failure("\n \n"), "the file holds no rows");
  EXPECT_EQ(failure("", ".txt"), "the file holds no text");
  EXPECT_EQ(failure("a\nb\xc3\n", ".txt"), "line 2: invalid UTF-8");
  EXPECT_EQ(failure("{}", ".csv"), "expected a name ending in .jsonl, .ndjson or .txt, got '.csv'");
  EXPECT_THAT(failure("{\"id\": 1}"), testing::HasSubstr("line 1: expected `messages`"));
}

TEST(DataReader, RefusesDeepNesting) {
  EXPECT_EQ(rows_of(".jsonl", nested(kMaxJsonDepth - 2)).size(), 1u);
  EXPECT_EQ(failure(nested(kMaxJsonDepth + 1)), "line 1: JSON nested too deeply");
  EXPECT_EQ(failure(nested(1000000)), "line 1: JSON nested too deeply");
}

TEST(DataReader, RefusesWhatIsNoFile) {
  const auto ignore = [](const DataRow&) {};
  EXPECT_THROW(read_data("/nonexistent/rows.jsonl", ignore), IoError);
  const auto folder = std::filesystem::path(testing::TempDir()) / "data_reader_folder.jsonl";
  std::filesystem::create_directories(folder);
  EXPECT_THROW(read_data(folder, ignore), IoError);
  std::filesystem::remove(folder);
}

TEST(DataReader, SurvivesEveryTruncationOfARow) {
  const std::string row =
      R"({"messages": [{"role": "user", "content": "\u00e9\n"}, {"role": "assistant", "x": [1, 2.5, true, null]}]})";
  EXPECT_EQ(rows_of(".jsonl", row).size(), 1u);
  for (size_t length = 1; length < row.size(); ++length) {
    EXPECT_THROW(parse_data_row(row.substr(0, length)), Error) << length;
  }
}

}  // namespace
}  // namespace flashloom
