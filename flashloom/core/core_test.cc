#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

#include "flashloom/core/check.h"
#include "flashloom/core/dtype.h"
#include "flashloom/core/error.h"
#include "flashloom/core/memory_plan.h"
#include "flashloom/core/parallel.h"
#include "flashloom/core/philox.h"
#include "flashloom/core/progress.h"
#include "flashloom/core/tensor_view.h"

namespace flashloom {
namespace {

// The nearest representable values around x, by exhaustive search over all finite patterns.
template <class Half>
float nearest(float x) {
  float best = 0;
  double best_distance = std::numeric_limits<double>::infinity();
  bool best_even = false;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto value = static_cast<float>(Half::from_bits(static_cast<uint16_t>(bits)));
    if (!std::isfinite(value)) {
      continue;
    }
    const double distance = std::fabs(static_cast<double>(value) - x);
    const bool even = (bits & 1) == 0;
    if (distance < best_distance || (distance == best_distance && even && !best_even)) {
      best = value;
      best_distance = distance;
      best_even = even;
    }
  }
  return best;
}

template <class Half>
void every_pattern_survives() {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Half half = Half::from_bits(static_cast<uint16_t>(bits));
    const auto value = static_cast<float>(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(static_cast<float>(Half(value))));
    } else {
      EXPECT_EQ(Half(value).bits, bits);
    }
  }
}

TEST(DType, EveryHalfPatternSurvivesAFloat) {
  every_pattern_survives<bf16>();
  every_pattern_survives<f16>();
}

TEST(DType, HalvesRoundToNearestEven) {
  RandomSequence random(1, RandomStream::test);
  for (int i = 0; i < 40; ++i) {
    const float x = random.normal() * std::exp2(random.uniform(-26.0f, 14.0f));
    EXPECT_EQ(static_cast<float>(bf16(x)), nearest<bf16>(x)) << x;
    EXPECT_EQ(static_cast<float>(f16(x)), nearest<f16>(x)) << x;
  }
  for (const float x : {0x1.001p0f, 0x1.002p0f, 0x1.003p0f, 0x1p-25f, 0x1.8p-24f, 65519.0f}) {
    EXPECT_EQ(static_cast<float>(f16(x)), nearest<f16>(x)) << x;
  }
  EXPECT_TRUE(std::isinf(static_cast<float>(f16(65520.0f))));
  EXPECT_TRUE(std::isinf(static_cast<float>(bf16(std::numeric_limits<float>::max()))));
}

TEST(Philox, GivesThePublishedVectors) {
  // Random123's known answers for philox4x32-10.
  EXPECT_EQ(philox(0, 0, 0),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox(~0ull, ~0ull, ~0ull),
            (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox(0x299f31d0'a4093822ull, 0x85a308d3'243f6a88ull, 0x03707344'13198a2eull),
            (std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, ASequenceGoesOnFromItsPosition) {
  RandomSequence one(7, RandomStream::test);
  for (int i = 0; i < 13; ++i) {
    one.bits();
  }
  RandomSequence two(7, RandomStream::test, one.position());
  for (int i = 0; i < 9; ++i) {
    EXPECT_EQ(one.bits(), two.bits());
  }
}

TEST(Philox, BelowIsUniform) {
  RandomSequence random(3, RandomStream::test);
  std::array<int, 7> counts = {};
  for (int i = 0; i < 70000; ++i) {
    ++counts[random.below(7)];
  }
  for (const int count : counts) {
    EXPECT_NEAR(count, 10000, 400);  // over four standard deviations
  }
}

TEST(TensorView, SlicesSelectsSplitsAndTransposes) {
  std::vector<float> memory(2 * 3 * 8);
  const TensorView view(memory.data(), {2, 3, 8});
  EXPECT_TRUE(view.is_contiguous());
  EXPECT_EQ(view.select(1, 2).as<float>(), memory.data() + 16);
  EXPECT_EQ(view.slice(2, 4, 2).stride(1), 8);
  EXPECT_FALSE(view.slice(2, 4, 2).is_contiguous());
  const TensorView heads = view.split(2, 4).transpose(1, 2);  // (2, 2, 3, 4)
  EXPECT_EQ(heads.dim(1), 2);
  EXPECT_EQ(heads.stride(1), 4);
  EXPECT_EQ(heads.stride(2), 8);
  EXPECT_THROW((void)view.slice(0, 1, 2), InvalidArgument);
  EXPECT_THROW((void)view.as<bf16>(), InvalidArgument);
  EXPECT_FALSE(static_cast<bool>(TensorView()));
}

TEST(Check, NamesOpArgumentExpectedAndActual) {
  std::vector<float> memory(6);
  try {
    check_shape("rms_norm", "weight", TensorView(memory.data(), {2, 3}), {kAnySize, 4});
    FAIL() << "accepted a wrong shape";
  } catch (const InvalidArgument& error) {
    EXPECT_STREQ(error.what(), "rms_norm: weight: expected shape (any, 4), got (2, 3) f32");
  }
}

TEST(Parallel, RunsEachIndexOnceAndRethrows) {
  for (const int threads : {1, 2, 5}) {
    set_thread_count(threads);
    std::vector<std::atomic<int>> seen(1000);
    parallel_for(1000, [&](int64_t i) { ++seen[static_cast<size_t>(i)]; });
    for (const auto& count : seen) {
      EXPECT_EQ(count, 1);
    }
    EXPECT_THROW(parallel_for(100,
                              [](int64_t i) {
                                if (i == 37) {
                                  throw Error("37");
                                }
                              }),
                 Error);
  }
  set_thread_count(0);
}

TEST(MemoryPlan, BuffersDoNotOverlapAndScopesShare) {
  MemoryPlan plan;
  const auto a = plan.add("a", MemoryKind::weights, DType::f32, {3, 5});
  plan.begin_scope();
  const auto b = plan.add("b", MemoryKind::workspace, DType::bf16, {100});
  plan.end_scope();
  plan.begin_scope();
  const auto c = plan.add("c", MemoryKind::workspace, DType::f32, {7});
  plan.end_scope();
  const auto d = plan.add("d", MemoryKind::gradients, DType::i32, {1});
  EXPECT_EQ(plan.total_bytes(), 64 + 64 + 256);
  EXPECT_EQ(plan.kind_bytes(MemoryKind::weights), 64);
  const Arena arena(plan);
  EXPECT_EQ(arena[b].data, arena[c].data);
  EXPECT_EQ(static_cast<std::byte*>(arena[d].data) - static_cast<std::byte*>(arena[a].data), 64);
  EXPECT_EQ(arena[a].dim(1), 5);
  EXPECT_EQ(arena[a].as<float>()[14], 0.0f);
}

TEST(Bytes, AreReadAsPeopleWriteThem) {
  EXPECT_EQ(parse_bytes("8GB"), 8'000'000'000);
  EXPECT_EQ(parse_bytes("512 MiB"), 512 << 20);
  EXPECT_EQ(parse_bytes("1.5e9"), 1'500'000'000);
  EXPECT_EQ(parse_bytes("700"), 700);
  for (const char* text : {"", "GB", "8 gallons", "-1GB", "0", "nan", "1e99"}) {
    EXPECT_THROW(parse_bytes(text), InvalidArgument) << text;
  }
}

TEST(MemoryPlan, CountsWhatOthersHold) {
  MemoryPlan plan;
  plan.add("a", MemoryKind::weights, DType::f32, {16});
  plan.add_outside("tokenizer", 1000);
  EXPECT_EQ(plan.arena_bytes(), 64);
  EXPECT_EQ(plan.total_bytes(), 1064);
  EXPECT_EQ(plan.kind_bytes(MemoryKind::process), 1000);
  EXPECT_NE(plan.table().find("tokenizer"), std::string::npos);
  EXPECT_THROW(plan.require(1063), OutOfMemory);
  EXPECT_THROW(plan.add_outside("nothing", -1), InvalidArgument);
}

TEST(MemoryPlan, RefusesWhatDoesNotFit) {
  MemoryPlan plan;
  plan.add("logits", MemoryKind::activations, DType::f32, {8192, 151936});
  EXPECT_THROW(plan.require(int64_t{1} << 30), OutOfMemory);
  EXPECT_NO_THROW(plan.require(int64_t{1} << 33));
  EXPECT_THROW(plan.add("huge", MemoryKind::data, DType::f32, {int64_t{1} << 40, int64_t{1} << 40}),
               InvalidArgument);
  EXPECT_THROW(plan.add("negative", MemoryKind::data, DType::f32, {-1}), InvalidArgument);
  EXPECT_GT(available_memory_bytes(), 0);
}

TEST(Progress, EstimatesFromTheRecentRate) {
  using std::chrono::seconds;
  const Progress::Clock::time_point start;
  Progress progress(100, 0, start);
  EXPECT_LT(progress.remaining_seconds(), 0);
  progress.advance(1, start + seconds(60));  // a slow first step
  for (int i = 2; i <= 50; ++i) {
    progress.advance(i, start + seconds(60 + i));
  }
  EXPECT_NEAR(progress.remaining_seconds(), 50, 1);
  EXPECT_EQ(progress.line(), "50/100 · 1:50 · 0:50 left");
  EXPECT_EQ(format_duration(3723), "1:02:03");
  EXPECT_EQ(format_bytes(999), "999 B");
  EXPECT_EQ(format_bytes(4500000), "4.5 MB");
}

}  // namespace
}  // namespace flashloom
