#include "flashloom/text/supervised_data.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/text/tokenizer_test_data.h"

namespace flashloom {
namespace {

using Ids = std::vector<int32_t>;

class SupervisedFiles : public testing::Test {
 protected:
  SupervisedFiles() {
    GgufVocabulary vocabulary = golden_vocabulary("smollm2");
    vocabulary.eos_id = 2;
    vocabulary.chat_template = golden_text("templates/smollm2.jinja");
    encoder_.emplace(Tokenizer::from_vocabulary(vocabulary));
    folder_ = std::filesystem::path(testing::TempDir()) /
              (std::string("supervised_") +
               testing::UnitTest::GetInstance()->current_test_info()->name());
    std::filesystem::create_directories(folder_);
  }

  ~SupervisedFiles() override { std::filesystem::remove_all(folder_); }

  DataFile file(const std::string& name, std::string_view content, double weight = 1) const {
    std::ofstream(folder_ / name, std::ios::binary) << content;
    DataFile file = folder_ / name;
    file.weight = weight;
    return file;
  }

  SupervisedSplit load(const std::vector<DataFile>& files, const SupervisedOptions& options) const {
    return load_supervised(files, *encoder_, options);
  }

  SupervisedData load(const std::string& ending, std::string_view content, int64_t length,
                      LongRows long_rows = LongRows::cut) const {
    return load({file("rows" + ending, content)},
                {.sequence_length = length, .long_rows = long_rows})
        .train;
  }

  // Texts of all documents, without their end tokens.
  std::multiset<std::string> texts(const TokenDocuments& documents) const {
    std::multiset<std::string> texts;
    for (int64_t i = 0; i < documents.size(); ++i) {
      texts.insert(encoder_->tokenizer().decode(documents[i].tokens, /*skip_special=*/true));
    }
    return texts;
  }

  std::optional<SupervisedEncoder> encoder_;
  std::filesystem::path folder_;
};

std::string numbered_rows(int first, int last) {
  std::string rows;
  for (int i = first; i < last; ++i) {
    rows += "{\"text\": \"row " + std::to_string(i) + "\"}\n";
  }
  return rows;
}

// Digits are a token each.
constexpr std::string_view kRows =
    "{\"text\": \"1234567890\"}\n"
    "{\"prompt\": \"12345678\", \"completion\": \"9\"}\n"
    "{\"prompt\": \"12\", \"completion\": \"34\"}\n"
    "{\"text\": \"\"}\n";

TEST_F(SupervisedFiles, CutDropAndCount) {
  const SupervisedData data = load(".jsonl", kRows, 8);
  EXPECT_EQ(data.counts.rows, 4);
  EXPECT_EQ(data.counts.examples, 2);
  EXPECT_EQ(data.counts.longer, 2);
  EXPECT_EQ(data.counts.dropped, 2);
  EXPECT_EQ(data.counts.lost_tokens, 3 + (2 + 8) + 1);
  EXPECT_EQ(data.documents.size(), 2);
  EXPECT_EQ(data.documents.length(0), 8);
  EXPECT_EQ(data.documents.total_loss_tokens(), 7 + 3);
  EXPECT_EQ(
      describe(data.counts, {.sequence_length = 8}),
      "4 rows, 2 examples; 2 longer than 8 tokens cut, 2 without loss dropped, 14 tokens lost");
}

TEST_F(SupervisedFiles, SplitLongRowsWithoutLosingALossToken) {
  const SupervisedData data = load(".jsonl", kRows, 8, LongRows::split);
  // 11 tokens in 8 + 3; of 10 the first 8 bear no loss; 5; a lone end token.
  EXPECT_EQ(data.counts.examples, 4);
  EXPECT_EQ(data.counts.longer, 2);
  EXPECT_EQ(data.counts.dropped, 2);
  EXPECT_EQ(data.counts.lost_tokens, 8 + 1);
  EXPECT_EQ(data.documents.total_tokens(), 11 + 2 + 5);
}

TEST_F(SupervisedFiles, DropOrRefuseLongRows) {
  const SupervisedData data = load(".jsonl", kRows, 8, LongRows::drop);
  EXPECT_EQ(data.counts.examples, 1);
  EXPECT_EQ(data.counts.longer, 2);
  EXPECT_EQ(data.counts.lost_tokens, 11 + 10 + 1);
  EXPECT_THAT([&] { load(".jsonl", kRows, 8, LongRows::refuse); },
              testing::ThrowsMessage<IoError>(testing::HasSubstr(
                  "rows.jsonl: line 1: expected at most 8 tokens (--seq-len), found 11")));
  EXPECT_EQ(load(".jsonl", kRows, 11, LongRows::refuse).counts.longer, 0);
}

TEST_F(SupervisedFiles, CutATextFileIntoPieces) {
  const SupervisedData data = load(".txt", "123456789012345678", 8);
  EXPECT_EQ(data.documents.size(), 3);
  EXPECT_EQ(data.documents.total_tokens(), 19);  // and its end token
  EXPECT_EQ(data.counts.rows, 1);
  EXPECT_EQ(data.counts.lost_tokens, 0);
}

TEST_F(SupervisedFiles, ALargeTextFileHasOneEnd) {
  std::string text;
  while (text.size() < (9U << 20)) {  // more than two rows of the reader
    text += "a line of some words\n";
  }
  const SupervisedData data = load(".txt", text, 4096);
  EXPECT_EQ(data.counts.rows, 1);
  int64_t ends = 0;
  std::string whole;
  for (int64_t i = 0; i < data.documents.size(); ++i) {
    for (const int32_t id : data.documents[i].tokens) {
      ends += id == 2 ? 1 : 0;
    }
    whole += encoder_->tokenizer().decode(data.documents[i].tokens, /*skip_special=*/true);
  }
  EXPECT_EQ(ends, 1);
  EXPECT_EQ(whole + "\n", text);
}

TEST_F(SupervisedFiles, RefuseDataWithoutLoss) {
  EXPECT_THROW(load(".jsonl", R"({"messages": [{"role": "user", "content": "x"}]})", 100), IoError);
  EXPECT_THROW(load(".jsonl", R"({"text": "abc"})", 1), InvalidArgument);
}

TEST_F(SupervisedFiles, ARowIsOnTheSameSideWhereverItStands) {
  const SupervisedOptions options = {.held_out = 0.2};
  const std::string rows = numbered_rows(0, 500);
  const SupervisedSplit one = load({file("all.jsonl", rows)}, options);
  // Parted in two, turned round, with a copy and blanks around rows.
  const SupervisedSplit two =
      load({file("b.jsonl", "  " + numbered_rows(250, 500) + numbered_rows(7, 8)),
            file("a.jsonl", numbered_rows(0, 250))},
           options);
  EXPECT_EQ(texts(one.held_out.documents), [&] {
    auto copies = texts(two.held_out.documents);
    const std::string seven = "row 7";
    if (copies.count(seven) == 2) {
      copies.erase(copies.find(seven));
    }
    return copies;
  }());
  EXPECT_EQ(one.train.documents.size() + one.held_out.documents.size(), 500);
  // Binomial: 100 of 500, deviation 9.
  EXPECT_NEAR(static_cast<double>(one.held_out.documents.size()), 100, 36);
  // A larger share takes the same rows and more.
  const auto larger = texts(load({file("all.jsonl", rows)}, {.held_out = 0.4}).held_out.documents);
  for (const std::string& text : texts(one.held_out.documents)) {
    EXPECT_EQ(larger.count(text), 1U) << text;
  }
  EXPECT_THROW(load({file("all.jsonl", rows)}, {.held_out = 1}), InvalidArgument);
  EXPECT_THROW(load({file("all.jsonl", numbered_rows(0, 3))}, {.held_out = 1e-9}), IoError);
}

TEST_F(SupervisedFiles, AreTheSameInMemoryOnDiskAndForAnyThreads) {
  const std::vector<DataFile> files = {file("a.jsonl", numbered_rows(0, 5000), 2),
                                       file("b.jsonl", numbered_rows(5000, 9000))};
  const int threads = thread_count();
  set_thread_count(1);
  const TokenDocuments memory = load(files, {}).train.documents;
  set_thread_count(3);
  const SupervisedData spilled =
      load(files, {.spill_directory = folder_.string(), .memory_bytes = 20000}).train;
  set_thread_count(threads);
  EXPECT_EQ(memory.spilled_bytes(), 0);
  EXPECT_GT(spilled.documents.spilled_bytes(), 0);
  EXPECT_EQ(spilled.documents.groups(), memory.groups());
  EXPECT_EQ(memory.groups(), (std::vector<DocumentGroup>{{0, 5000, 2}, {5000, 4000, 1}}));
  ASSERT_EQ(spilled.documents.lengths(), memory.lengths());
  for (int64_t i = 0; i < memory.size(); ++i) {
    const TokenDocument a = memory[i];
    const TokenDocument b = spilled.documents[i];
    ASSERT_TRUE(std::equal(a.tokens.begin(), a.tokens.end(), b.tokens.begin())) << i;
    ASSERT_TRUE(std::equal(a.loss.begin(), a.loss.end(), b.loss.begin())) << i;
  }
  // Its file has no name.
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder_), {}), 2);
}

TEST_F(SupervisedFiles, TellTheFirstWrongRowWhicheverThreadMetIt) {
  std::string rows = numbered_rows(0, 3000);
  rows += "{\"messages\": [{\"role\": \"narrator\", \"content\": 1}]}\n" + numbered_rows(0, 50) +
          "{\"messages\": [{\"role\": \"narrator\", \"content\": 2}]}\n";
  EXPECT_THAT([&] { load(".jsonl", rows, 100); },
              testing::ThrowsMessage<IoError>(testing::HasSubstr("rows.jsonl: line 3001")));
}

TEST(DataFiles, MayHaveAWeight) {
  EXPECT_EQ(parse_data_file("a.jsonl").path, "a.jsonl");
  EXPECT_EQ(parse_data_file("a.jsonl").weight, 1);
  EXPECT_EQ(parse_data_file("dir/a.jsonl:2.5").path, "dir/a.jsonl");
  EXPECT_EQ(parse_data_file("dir/a.jsonl:2.5").weight, 2.5);
  for (const char* wrong : {"a.jsonl:", "a.jsonl:x", "a.jsonl:0", "a.jsonl:-1", "a.jsonl:nan",
                            "a.jsonl:2x", "a.jsonl:1e9"}) {
    EXPECT_THROW(parse_data_file(wrong), InvalidArgument) << wrong;
  }
  const auto odd = std::filesystem::path(testing::TempDir()) / "odd:3";
  std::ofstream(odd) << "x";
  EXPECT_EQ(parse_data_file(odd.string()).path, odd);
  std::filesystem::remove(odd);
}

TEST(TokenDocuments, RefuseADirectoryThatTakesNoFile) {
  TokenDocuments documents("/nonexistent", 8);
  const Ids tokens = {1, 2, 3};
  const std::vector<uint8_t> loss(3, 1);
  EXPECT_THAT(
      [&] {
        for (int i = 0; i < 4; ++i) {
          documents.add(tokens, loss);
        }
      },
      testing::ThrowsMessage<IoError>(testing::HasSubstr("/nonexistent")));
  EXPECT_THROW(documents.begin_group(0), InvalidArgument);
}

}  // namespace
}  // namespace flashloom
