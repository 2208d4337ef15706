#include "flashloom/text/token_shard.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/core/philox.h"
#include "flashloom/text/supervised_data.h"
#include "flashloom/text/tokenizer_test_data.h"

namespace flashloom {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using namespace std::string_literals;
using Ids = std::vector<int32_t>;

constexpr int32_t kEnd = 2;

struct Piece {
  Ids tokens;
  std::vector<uint8_t> loss;
  bool begins = false;

  bool operator==(const Piece&) const = default;
};

std::string header(std::vector<int32_t> numbers, std::string_view magic = "") {
  std::string bytes(1024, '*');  // what LLMQ leaves there
  std::memcpy(bytes.data(), magic.data(), magic.size());
  std::memcpy(bytes.data() + magic.size(), numbers.data(), 4 * numbers.size());
  return bytes;
}

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

std::string llmq(const Ids& tokens, std::string masks = "", int32_t vocabulary = 100) {
  return header({2, 4, static_cast<int32_t>(tokens.size()), vocabulary, masks.empty() ? 0 : 1},
                "BIN.TOK\n") +
         bytes_of(tokens) + masks;
}

class TokenShard : public testing::Test {
 protected:
  TokenShard() {
    GgufVocabulary vocabulary = golden_vocabulary("smollm2");
    vocabulary.eos_id = kEnd;
    vocabulary_ = vocabulary;
    std::filesystem::create_directories(folder_);
  }

  ~TokenShard() override { std::filesystem::remove_all(folder_); }

  std::vector<Piece> read(const std::string& bytes, int64_t longest = 100) const {
    const std::filesystem::path file = folder_ / "shard.bin";
    std::ofstream(file, std::ios::binary) << bytes;
    std::vector<Piece> pieces;
    read_token_shard(
        file, Tokenizer::from_vocabulary(vocabulary_), longest,
        [&](std::span<const int32_t> tokens, std::span<const uint8_t> loss, bool begins) {
          pieces.push_back({Ids(tokens.begin(), tokens.end()),
                            std::vector<uint8_t>(loss.begin(), loss.end()), begins});
        });
    return pieces;
  }

  std::string failure(const std::string& bytes) const {
    try {
      read(bytes);
    } catch (const IoError& error) {
      return error.what();
    }
    return "none";
  }

  GgufVocabulary vocabulary_;
  std::filesystem::path folder_ =
      std::filesystem::path(testing::TempDir()) /
      (std::string("shard_") + testing::UnitTest::GetInstance()->current_test_info()->name());
};

TEST_F(TokenShard, ReadsEveryLayout) {
  const Ids tokens = {5, 6, kEnd, 7, 300};
  const std::vector<Piece> expected = {{{5, 6, kEnd}, {1, 1, 1}, true}, {{7, 300}, {1, 1}, true}};
  EXPECT_EQ(read(header({20240520, 1, 5}) + bytes_of(std::vector<uint16_t>{5, 6, kEnd, 7, 300})),
            expected);
  EXPECT_EQ(read(header({20240801, 7, 5}) + bytes_of(tokens)), expected);
  EXPECT_EQ(read(header({1, 4, 5}, "BIN.TOK\n") + bytes_of(tokens)), expected);
  EXPECT_EQ(read(llmq(tokens)), expected);
  EXPECT_EQ(read(llmq(tokens, std::string(1, '\xff'))), expected);
}

TEST_F(TokenShard, CutsLongDocumentsAndKnowsWhereTheyBegin) {
  EXPECT_EQ(read(llmq({5, 6, 7, kEnd, 8}), 2).size(), 3);
  const std::vector<Piece> pieces = read(llmq({5, 6, 7, kEnd, 8}), 3);
  ASSERT_EQ(pieces.size(), 3);
  EXPECT_THAT(pieces[0].tokens, ElementsAre(5, 6, 7));
  EXPECT_THAT(pieces[1].tokens, ElementsAre(kEnd));
  EXPECT_FALSE(pieces[1].begins);
  EXPECT_TRUE(pieces[2].begins);
}

// Two examples as LLMQ writes them: prompt, answer, end, filled up with zeros to six.
TEST_F(TokenShard, LeavesOutWhatFillsExamplesUp) {
  const Ids tokens = {5, kEnd, 7, kEnd, 0, 0, 0, 8, 9, kEnd, 0, 0};
  //            loss: 0  0     1  1     0  0  0  0  1  1     0  0
  const std::string masks = {'\x0c', '\x03'};
  const std::vector<uint8_t> loss = {0, 0, 1, 1};
  vocabulary_.bos_id = 1;
  EXPECT_EQ(read(llmq(tokens, masks)), (std::vector<Piece>{{{5, kEnd, 7, kEnd}, loss, true},
                                                           {{8, 9, kEnd}, {0, 1, 1}, true}}));
  vocabulary_.bos_id = 0;
  EXPECT_THAT(read(llmq(tokens, masks))[1].tokens, ElementsAre(0, 8, 9, kEnd));
  // Without masks nothing says that they fill.
  EXPECT_EQ(read(llmq({0, 0, 5})).size(), 3);  // here 0 ends a text
}

TEST_F(TokenShard, ReadsBlocksLikeOneFile) {
  Ids tokens;
  std::string masks;
  std::vector<Piece> expected;
  for (int i = 0; i < 30000; ++i) {
    const Ids document = {10 + i % 50, 70, 71, 72, kEnd};
    tokens.insert(tokens.end(), document.begin(), document.end());
    expected.push_back({document, {0, 0, 1, 0, 1}, true});
  }
  masks.resize((tokens.size() + 7) / 8);
  for (size_t i = 0; i < tokens.size(); ++i) {
    masks[i / 8] = static_cast<char>(masks[i / 8] | (i % 5 == 2 || i % 5 == 4 ? 1 << i % 8 : 0));
  }
  EXPECT_TRUE(read(llmq(tokens, masks)) == expected);
}

TEST_F(TokenShard, RefusesWhatIsNotSoByName) {
  EXPECT_THAT(failure("short"), HasSubstr("expected 1024 bytes, found a file of 5"));
  EXPECT_THAT(failure(header({3, 1, 1}) + "1234"), HasSubstr("found 3"));
  EXPECT_THAT(failure(header({20240520, 2, 1}) + "12"), HasSubstr("expected version 1"));
  EXPECT_THAT(failure(header({3, 4, 1}, "BIN.TOK\n") + "1234"), HasSubstr("version 1 or 2"));
  EXPECT_THAT(failure(header({2, 2, 1, 9, 0}, "BIN.TOK\n") + "12"), HasSubstr("4 bytes a token"));
  EXPECT_THAT(failure(header({2, 4, 1, 9, 7}, "BIN.TOK\n") + "1234"), HasSubstr("masks 0 or 1"));
  for (const int32_t count : {0, -1, INT32_MIN}) {
    EXPECT_THAT(failure(header({20240801, 7, count})), HasSubstr("one or more tokens"));
  }
  EXPECT_THAT(failure(header({20240801, 7, INT32_MAX})),
              HasSubstr("says 2147483647 tokens of 4 bytes, a file of 8589935612 bytes; it has "
                        "1024"));
  EXPECT_THAT(failure(llmq({5, 6}) + "x"), HasSubstr("a file of 1032 bytes; it has 1033"));
  EXPECT_THAT(failure(llmq({5, 6}, "\x03").substr(0, 1032)), HasSubstr("and their masks"));
  EXPECT_THAT(failure(llmq({5, 6, -7})), HasSubstr("token 2: expected 0 to"));
  EXPECT_THAT(failure(llmq({5, 1 << 20})), HasSubstr("token 1: expected 0 to"));
  EXPECT_THAT(failure(llmq({5}, "", 999999)), HasSubstr("a vocabulary of 999999"));
  EXPECT_THAT(
      [&] {
        read_token_shard(folder_, Tokenizer::from_vocabulary(vocabulary_), 4,
                         [](auto, auto, bool) {});
      },
      testing::ThrowsMessage<IoError>(HasSubstr("got a directory")));
  EXPECT_THAT(
      [&] {
        read_token_shard(folder_ / "none.bin", Tokenizer::from_vocabulary(vocabulary_), 4,
                         [](auto, auto, bool) {});
      },
      testing::ThrowsMessage<IoError>(HasSubstr("cannot be opened")));
}

// Whatever a header says, the file is read or refused, and nothing is sized by it.
TEST_F(TokenShard, ReadsOrRefusesAnyHeader) {
  RandomSequence random(5, RandomStream::test);
  const std::vector<std::string> files = {llmq({5, 6, kEnd, 7, 8}, "\x1c"),
                                          header({20240520, 1, 3}) + "\x05\0\x06\0\x02\0"s,
                                          header({20240801, 7, 1}) + "\x05\0\0\0"s};
  int refused = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string bytes = files[static_cast<size_t>(i) % files.size()];
    for (uint32_t changes = random.below(4); changes > 0; --changes) {
      bytes[random.below(32)] = static_cast<char>(random.bits());
    }
    bytes = bytes.substr(0, bytes.size() - random.below(3));
    refused += failure(bytes) == "none" ? 0 : 1;  // throws if it is another exception
  }
  EXPECT_GT(refused, 1000);
  EXPECT_LT(refused, 2000);
}

TEST_F(TokenShard, IsAFileToTrainOnLikeAnyOther) {
  const std::filesystem::path file = folder_ / "train.bin";
  std::ofstream(file, std::ios::binary) << llmq({5, 6, 7, 8, kEnd, 9, kEnd, kEnd});
  const SupervisedEncoder encoder(Tokenizer::from_vocabulary(vocabulary_));
  DataFile twice = file;
  twice.weight = 2;
  const SupervisedData data =
      load_supervised(std::vector<DataFile>{twice}, encoder, {.sequence_length = 3}).train;
  EXPECT_EQ(data.counts.rows, 3);
  EXPECT_EQ(data.counts.examples, 3);  // 5 6 7, 8 end, 9 end
  EXPECT_EQ(data.counts.dropped, 1);   // an end alone teaches nothing
  EXPECT_THAT(std::vector<int64_t>(data.documents.lengths()), ElementsAre(3, 2, 2));
  EXPECT_EQ(data.documents.groups().front().weight, 2);
}

}  // namespace
}  // namespace flashloom
