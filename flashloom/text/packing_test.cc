#include "flashloom/text/packing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/core/philox.h"
#include "flashloom/text/packed_batches.h"

namespace flashloom {
namespace {

std::vector<int64_t> random_lengths(size_t count, uint32_t longest, uint64_t seed) {
  RandomSequence random(seed, RandomStream::test);
  std::vector<int64_t> lengths(count);
  for (auto& length : lengths) {
    length = 1 + random.below(longest);
  }
  return lengths;
}

int64_t bin_tokens(const PackingPlan& plan, int64_t bin, const std::vector<int64_t>& lengths) {
  int64_t tokens = 0;
  for (const int32_t document : plan.bin(bin)) {
    tokens += lengths[static_cast<size_t>(document)];
  }
  return tokens;
}

// Documents whose tokens are all different: 1000 * index + place.
TokenDocuments numbered_documents(const std::vector<int64_t>& lengths) {
  TokenDocuments documents;
  for (size_t i = 0; i < lengths.size(); ++i) {
    std::vector<int32_t> tokens(static_cast<size_t>(lengths[i]));
    std::iota(tokens.begin(), tokens.end(), static_cast<int32_t>(1000 * i));
    std::vector<uint8_t> loss(tokens.size());
    for (size_t j = 0; j < loss.size(); ++j) {
      loss[j] = j % 3 != 1 ? 1 : 0;
    }
    documents.add(tokens, loss);
  }
  return documents;
}

TEST(Packing, PutsEachDocumentInOneBinWithinCapacity) {
  for (const int64_t window : {int64_t{1}, int64_t{7}, int64_t{100}, int64_t{100000}}) {
    const auto lengths = random_lengths(1000, 512, 1);
    const PackingPlan plan = pack_documents(lengths, {.capacity = 512, .window = window}, 0);
    std::vector<int32_t> seen = plan.documents;
    std::sort(seen.begin(), seen.end());
    std::vector<int32_t> all(1000);
    std::iota(all.begin(), all.end(), 0);
    EXPECT_EQ(seen, all);
    for (int64_t bin = 0; bin < plan.bins(); ++bin) {
      EXPECT_FALSE(plan.bin(bin).empty());
      EXPECT_LE(bin_tokens(plan, bin, lengths), 512);
    }
  }
}

TEST(Packing, StaysWithinTheBoundOfBestFitDecreasing) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const auto lengths = random_lengths(500, seed % 2 == 0 ? 300 : 1000, seed);
    const int64_t total = std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
    // No packing beats the greater of total / capacity and the documents of more than half a bin.
    const auto halves =
        std::count_if(lengths.begin(), lengths.end(), [](int64_t length) { return length > 500; });
    const int64_t best = std::max<int64_t>((total + 999) / 1000, halves);
    const PackingPlan plan = pack_documents(lengths, {.capacity = 1000, .window = 500}, 0);
    EXPECT_LE(9 * plan.bins(), 11 * best + 6);
  }
}

TEST(Packing, TakesTheBinWithTheLeastRoomThatSuffices) {
  const std::vector<int64_t> lengths = {6, 5, 4, 3, 2};
  const PackingPlan plan = pack_documents(lengths, {.capacity = 10, .shuffle = false}, 0);
  ASSERT_EQ(plan.bins(), 2);
  EXPECT_EQ(std::vector<int32_t>(plan.bin(0).begin(), plan.bin(0).end()),
            (std::vector<int32_t>{0, 2}));
  EXPECT_EQ(std::vector<int32_t>(plan.bin(1).begin(), plan.bin(1).end()),
            (std::vector<int32_t>{1, 3, 4}));
}

TEST(Packing, OrderDependsOnSeedAndEpochAlone) {
  const auto lengths = random_lengths(300, 100, 3);
  const auto documents = [&](uint64_t seed, int64_t epoch) {
    return pack_documents(lengths, {.capacity = 128, .window = 64, .seed = seed}, epoch).documents;
  };
  EXPECT_EQ(documents(1, 0), documents(1, 0));
  EXPECT_EQ(documents(1, 5), documents(1, 5));
  EXPECT_NE(documents(1, 0), documents(1, 1));
  EXPECT_NE(documents(1, 0), documents(2, 0));
}

TEST(Packing, DrawsGroupsByTheirWeights) {
  const std::vector<DocumentGroup> groups = {{0, 10, 2}, {10, 7, 0.5}, {17, 5, 1.3}, {22, 4, 1}};
  std::vector<int> seen(26);
  for (int64_t epoch = 0; epoch < 10; ++epoch) {
    for (const int32_t document : epoch_documents(groups, 5, epoch)) {
      ++seen[static_cast<size_t>(document)];
    }
    for (const DocumentGroup& group : groups) {
      const auto first = seen.begin() + group.first;
      const auto [least, most] = std::minmax_element(first, first + group.count);
      EXPECT_LE(*most - *least, 1) << epoch;
      const double drawn = std::accumulate(first, first + group.count, 0);
      EXPECT_NEAR(drawn,
                  static_cast<double>(epoch + 1) * group.weight * static_cast<double>(group.count),
                  1)
          << epoch;
    }
  }
  EXPECT_EQ(epoch_documents(groups, 5, 3), epoch_documents(groups, 5, 3));
  EXPECT_NE(epoch_documents(groups, 5, 3), epoch_documents(groups, 6, 3));
  // Halves of a group change from epoch to epoch, and two of them are all of it.
  const std::vector<DocumentGroup> half = {{0, 100, 0.5}};
  std::vector<int32_t> both = epoch_documents(half, 1, 0);
  EXPECT_EQ(both.size(), 50U);
  EXPECT_NE(both.back(), 49);  // not simply the first half
  const std::vector<int32_t> second = epoch_documents(half, 1, 1);
  both.insert(both.end(), second.begin(), second.end());
  EXPECT_EQ(std::set<int32_t>(both.begin(), both.end()).size(), 100U);
}

TEST(Packing, AWeightOfOneChangesNothing) {
  const auto lengths = random_lengths(300, 100, 3);
  const std::vector<DocumentGroup> groups = {{0, 300, 1}};
  const PackingOptions options = {.capacity = 128, .window = 64, .seed = 9};
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    EXPECT_EQ(pack_documents(lengths, options, epoch, groups).documents,
              pack_documents(lengths, options, epoch).documents);
  }
}

TEST(Packing, BoundsTheDocumentsOfABinForAnyWeights) {
  const auto lengths = random_lengths(60, 40, 8);
  for (const double weight : {0.3, 1.0, 1.5, 3.0, 3.7}) {
    const std::vector<DocumentGroup> groups = {{0, 20, weight}, {20, 40, 1}};
    int64_t most = 0;
    for (int64_t epoch = 0; epoch < 20; ++epoch) {
      const PackingPlan plan = pack_documents(lengths, {.capacity = 64}, epoch, groups);
      for (int64_t bin = 0; bin < plan.bins(); ++bin) {
        most = std::max(most, static_cast<int64_t>(plan.bin(bin).size()));
      }
    }
    EXPECT_LE(most, most_documents_in_a_bin(lengths, 64, groups)) << weight;
  }
  EXPECT_EQ(most_documents_in_a_bin(std::vector<int64_t>{2, 9, 3}, 10, {}), 2);
  EXPECT_EQ(most_documents_in_a_bin(std::vector<int64_t>{2, 9, 3}, 10,
                                    std::vector<DocumentGroup>{{0, 3, 3}}),
            4);
}

TEST(PackedStream, PassesOverEpochsThatSmallWeightsLeaveEmpty) {
  TokenDocuments documents;
  documents.begin_group(0.25);
  const std::vector<int32_t> tokens = {1, 2, 3};
  documents.add(tokens, std::vector<uint8_t>(3, 1));
  documents.add(tokens, std::vector<uint8_t>(3, 1));
  PackedStream stream(documents, {.bin_capacity = 8, .bins_per_step = 1}, {});
  std::vector<PackedBatch> batches;
  for (int step = 0; step < 4; ++step) {
    stream.next(batches);
    ASSERT_EQ(batches.size(), 1U);
    EXPECT_EQ(batches[0].tokens.size(), 3U);
  }
  EXPECT_EQ(stream.position().epoch, 6);  // a document every second epoch
}

TEST(Packing, RefusesWhatCannotBePacked) {
  const std::vector<int64_t> lengths = {3, 11};
  EXPECT_THROW(pack_documents(lengths, {.capacity = 10}, 0), InvalidArgument);
  EXPECT_THROW(pack_documents(lengths, {.capacity = 0}, 0), InvalidArgument);
  EXPECT_THROW(pack_documents(lengths, {.capacity = 11, .window = 0}, 0), InvalidArgument);
  EXPECT_THROW(pack_documents(std::vector<int64_t>{0}, {.capacity = 11}, 0), InvalidArgument);
  EXPECT_EQ(pack_documents({}, {.capacity = 10}, 0).bins(), 0);
}

TEST(PackedBatch, PositionsRestartAndNoLabelCrossesABorder) {
  const TokenDocuments documents = numbered_documents({4, 1, 3});
  PackedBatch batch;
  fill_batch(batch, documents, std::vector<int32_t>{2, 0, 1});
  EXPECT_EQ(batch.tokens, (std::vector<int32_t>{2000, 2001, 2002, 0, 1, 2, 3, 1000}));
  EXPECT_EQ(batch.positions, (std::vector<int32_t>{0, 1, 2, 0, 1, 2, 3, 0}));
  EXPECT_EQ(batch.labels, (std::vector<int32_t>{-100, 2002, -100, -100, 2, 3, -100, -100}));
  EXPECT_EQ(batch.cu_seqlens, (std::vector<int32_t>{0, 3, 7, 8}));
  EXPECT_EQ(batch.max_length, 4);
  EXPECT_EQ(batch.loss_tokens, 3);
  EXPECT_EQ(documents.total_loss_tokens(), 3);
}

TEST(PackedStream, AnEpochHoldsEachTokenAndEachLabelOnce) {
  const auto lengths = random_lengths(200, 90, 5);
  const TokenDocuments documents = numbered_documents(lengths);
  PackedStream stream(documents, plan_steps(256, 90, 128), {.window = 50, .seed = 9});
  std::vector<PackedBatch> step;
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    std::multiset<int32_t> tokens;
    int64_t loss_tokens = 0;
    do {
      stream.next(step);
      EXPECT_LE(step.size(), 2u);
      for (const PackedBatch& batch : step) {
        tokens.insert(batch.tokens.begin(), batch.tokens.end());
        loss_tokens += batch.loss_tokens;
        for (size_t i = 0; i < batch.labels.size(); ++i) {
          if (batch.labels[i] != kIgnoredLabel) {
            EXPECT_EQ(batch.labels[i], batch.tokens[i] + 1);
          }
        }
      }
    } while (stream.position().bin < stream.bins());
    EXPECT_EQ(stream.position().epoch, epoch);
    EXPECT_EQ(static_cast<int64_t>(tokens.size()), documents.total_tokens());
    EXPECT_EQ(std::set<int32_t>(tokens.begin(), tokens.end()).size(), tokens.size());
    EXPECT_EQ(loss_tokens, documents.total_loss_tokens());
  }
}

TEST(PackedStream, GoesOnFromASavedPosition) {
  const TokenDocuments documents = numbered_documents(random_lengths(100, 60, 6));
  const StepShape shape = plan_steps(256, 64, 64);
  PackedStream one(documents, shape, {.seed = 2});
  std::vector<PackedBatch> expected;
  std::vector<PackedBatch> actual;
  const int64_t steps = one.steps_per_epoch() + 2;
  for (int64_t i = 0; i < steps; ++i) {
    one.next(expected);
  }
  PackedStream two(documents, shape, {.seed = 2});
  two.seek(one.position());
  EXPECT_EQ(two.position(), one.position());
  one.next(expected);
  two.next(actual);
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    EXPECT_EQ(actual[i].tokens, expected[i].tokens);
  }
  EXPECT_THROW(two.seek({.epoch = 0, .bin = 100000}), InvalidArgument);
  EXPECT_THROW(two.seek({.epoch = -1, .bin = 0}), InvalidArgument);
}

TEST(Packing, BoundsTheDocumentsOfABin) {
  EXPECT_EQ(most_documents_in_a_bin(std::vector<int64_t>{9, 2, 5, 2, 3}, 12), 4);
  EXPECT_EQ(most_documents_in_a_bin(std::vector<int64_t>{9, 2, 5, 2, 3}, 11), 3);
  EXPECT_EQ(most_documents_in_a_bin(std::vector<int64_t>{9, 2, 5, 2, 3}, 100), 5);
  EXPECT_EQ(most_documents_in_a_bin(std::vector<int64_t>{9, 2, 5, 2, 3}, 1), 0);
}

TEST(PlanSteps, CutsAStepIntoEqualBins) {
  const auto shape = [](int64_t batch, int64_t sequence, int64_t most) {
    const StepShape planned = plan_steps(batch, sequence, most);
    return std::pair(planned.bin_capacity, planned.bins_per_step);
  };
  EXPECT_EQ(shape(1024, 512, 4096), std::pair(int64_t{1024}, int64_t{1}));
  EXPECT_EQ(shape(1024, 512, 1000), std::pair(int64_t{512}, int64_t{2}));
  EXPECT_EQ(shape(1024, 2048, 2048), std::pair(int64_t{2048}, int64_t{1}));
  EXPECT_EQ(shape(10000, 512, 4096), std::pair(int64_t{3334}, int64_t{3}));
  EXPECT_THROW(plan_steps(1024, 512, 511), InvalidArgument);
  EXPECT_THROW(plan_steps(0, 512, 512), InvalidArgument);
}

}  // namespace
}  // namespace flashloom
