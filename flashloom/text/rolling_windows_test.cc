#include "flashloom/text/rolling_windows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <vector>

#include "flashloom/core/error.h"

namespace flashloom {
namespace {

using testing::ElementsAre;

constexpr int32_t kPrefix = 99;

std::vector<int32_t> numbers(int32_t count) {
  std::vector<int32_t> values(static_cast<size_t>(count));
  std::iota(values.begin(), values.end(), 0);
  return values;
}

template <class T>
std::vector<T> copied(std::span<const T> values) {
  return {values.begin(), values.end()};
}

TEST(RollingWindows, TakeTheTokensAsTheHarnessDoes) {
  // get_rolling_token_windows(0..9, prefix 99, max_seq_len 4, context_len 3) of lm-evaluation-
  // harness: inputs and predicted tokens of each window.
  TokenDocuments documents;
  add_rolling_windows(documents, numbers(10), kPrefix, 4, 2);
  ASSERT_EQ(documents.size(), 4);
  EXPECT_THAT(copied(documents[0].tokens), ElementsAre(99, 0, 1, 2, 3));
  EXPECT_THAT(copied(documents[0].loss), ElementsAre(0, 1, 1, 1, 1));
  EXPECT_THAT(copied(documents[1].tokens), ElementsAre(1, 2, 3, 4, 5));
  EXPECT_THAT(copied(documents[1].loss), ElementsAre(0, 0, 0, 1, 1));
  EXPECT_THAT(copied(documents[3].tokens), ElementsAre(5, 6, 7, 8, 9));
  EXPECT_THAT(copied(documents[3].loss), ElementsAre(0, 0, 0, 1, 1));
}

TEST(RollingWindows, PredictEveryTokenOnceForAnyStride) {
  for (const int32_t size : {1, 3, 4, 5, 7, 8, 9, 31}) {
    for (int64_t stride = 1; stride <= 4; ++stride) {
      TokenDocuments documents;
      add_rolling_windows(documents, numbers(size), kPrefix, 4, stride);
      std::vector<int32_t> predicted;
      for (int64_t i = 0; i < documents.size(); ++i) {
        const TokenDocument window = documents[i];
        EXPECT_LE(window.tokens.size(), 5U);
        for (size_t t = 0; t < window.tokens.size(); ++t) {
          if (window.loss[t] != 0) {
            predicted.push_back(window.tokens[t]);
          }
        }
      }
      EXPECT_EQ(predicted, numbers(size)) << "stride " << stride;
      EXPECT_EQ(documents.total_loss_tokens(), size);
    }
  }
}

TEST(RollingWindows, RefuseWindowsThatDoNotCover) {
  TokenDocuments documents;
  EXPECT_THROW(add_rolling_windows(documents, numbers(3), kPrefix, 0, 1), InvalidArgument);
  EXPECT_THROW(add_rolling_windows(documents, numbers(3), kPrefix, 4, 5), InvalidArgument);
  EXPECT_THROW(add_rolling_windows(documents, numbers(3), kPrefix, 4, 0), InvalidArgument);
  EXPECT_THROW(add_rolling_windows(documents, {}, kPrefix, 4, 4), InvalidArgument);
}

}  // namespace
}  // namespace flashloom
