#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "flashloom/ops/attention/attention_test_run.cuh"
#include "flashloom/ops/attention/sm90/forward_band_call.cuh"

// The Hopper forward kernel for narrow bands: which calls it takes, and that it holds the law on
// every border of them.

namespace flashloom {
namespace {

using attention_test::Case;
using attention_test::check_laws;
using attention_test::ContractCase;
using attention_test::DeviceExecutor;
using attention_test::fresh_seed;
using attention_test::Law;
using attention_test::Layout;
using attention_test::pointers_to;
using attention_test::Results;
using attention_test::SharedOffsetsExecutor;
using attention_test::Tensor;

std::optional<int32_t> shift_of(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                                const AttentionOptions& options) {
  return sm90::forward_band_shift({outputs, inputs, options, nullptr, nullptr});
}

// Small calls, too, take the kernel.
class ForwardBand : public testing::Test {
 protected:
  void SetUp() override { sm90::forward_band_always = true; }

  void TearDown() override { sm90::forward_band_always = false; }
};

using AttentionSanitizerBand = ForwardBand;

/// Expects that the kernel takes the call.
class BandExecutor : public SharedOffsetsExecutor {
 public:
  using SharedOffsetsExecutor::SharedOffsetsExecutor;

 protected:
  void call_forward(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                    std::span<std::byte> workspace,
                    const AttentionOptions& options) const override {
    EXPECT_TRUE(shift_of(outputs, inputs, shared(options))) << "another kernel takes the call";
    SharedOffsetsExecutor::call_forward(outputs, inputs, workspace, options);
  }
};

class Cases {
 public:
  explicit Cases(uint64_t seed) : random(seed, RandomStream::test) {}

  /// `rows` queries and keys of a batch of 2, 4 heads over 2.
  Case& add(int64_t rows, AttentionVisibility visibility, DType dtype = DType::bf16) {
    ContractCase c;
    c.call = {.batch = 2,
              .heads = 4,
              .key_heads = 2,
              .queries = rows,
              .keys = rows,
              .dim = 64,
              .value_dim = 64,
              .dtype = dtype,
              .seed = random.below(1u << 30)};
    c.call.options.visibility = visibility;
    c.name = std::to_string(rows) + " rows, window " + std::to_string(visibility.left) + ", " +
             std::to_string(visibility.right) + ", call " + std::to_string(all.size());
    all.push_back(c);
    return all.back().call;
  }

  int64_t below(uint32_t limit) { return static_cast<int64_t>(random.below(limit)); }

  void expect_law(const BandExecutor& executor = BandExecutor()) const {
    check_laws(pointers_to(all), false, [&](const ContractCase& c, const Law& law) {
      SCOPED_TRACE(c.name);
      law.expect(AttentionBackend::sm90, executor);
    });
  }

  RandomSequence random;
  std::vector<ContractCase> all;
};

void widen(Case& call, int64_t dim) {
  call.dim = call.value_dim = dim;
}

constexpr int64_t kLengths[] = {1, 2, 63, 64, 65, 127, 128, 129, 191, 192, 193, 700};

TEST_F(ForwardBand, EveryLengthHoldsTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  Cases cases(fresh_seed());
  for (const int64_t rows : kLengths) {
    for (const DType dtype : {DType::bf16, DType::f16}) {
      cases.add(rows, {64, 64}, dtype);
      cases.add(rows, {128, 0}, dtype).key_heads = 4;
      cases.add(rows, {0, 128}, dtype).key_heads = 1;
      widen(cases.add(rows, {64, 64}, dtype), 128);
    }
  }
  cases.expect_law();
}

TEST_F(ForwardBand, EveryWindowHoldsTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  Cases cases(fresh_seed());
  for (const int64_t left : {0, 1, 7, 31, 32, 33, 63, 64}) {
    for (const int64_t right : {0, 1, 8, 32, 63, 64}) {
      cases.add(200, {left, right});
    }
  }
  for (int i = 0; i < 32; ++i) {
    const int64_t left = cases.below(129);
    cases.add(1 + cases.below(400), {left, left <= 64 ? cases.below(65) : 0});
    widen(cases.add(1 + cases.below(300), {left, left <= 64 ? cases.below(65) : 0}), 96);
  }
  cases.expect_law();
}

// Rows that see nothing before, behind and in the middle of their keys; more queries than keys and
// fewer.
TEST_F(ForwardBand, EveryOffsetHoldsTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  Cases cases(fresh_seed());
  for (int i = 0; i < 48; ++i) {
    Case& call = cases.add(1 + cases.below(500), {63, 63});
    call.keys = 1 + cases.below(500);
    // What tile 0 of queries sees must not reach into a fourth tile of keys.
    const int64_t offset = 64 * (cases.below(13) - 6) + cases.below(3) - 1;
    call.options.visibility = {64 - (offset % 64 == 0 ? 0 : 1), 63};
    if (i % 3 == 0) {
      call.options.positions.query_start = 5000 + offset;
      call.options.positions.key_start = 5000;
    } else {
      call.options.positions.offset = offset;
    }
  }
  // The default offset: the last query stands beside the last key.
  cases.add(130, {64, 64}).keys = 130 + 64;
  cases.add(300, {64, 64}).keys = 300 - 128;
  cases.expect_law();
}

TEST_F(ForwardBand, WidthsScalesAndSinksHoldTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  Cases cases(fresh_seed());
  Tensor sinks(DType::f32, {4});
  sinks.random(cases.random.below(1000), 2);
  const std::pair<int64_t, int64_t> widths[] = {{8, 8},   {40, 40}, {64, 24},  {16, 64},
                                                {56, 48}, {72, 72}, {128, 64}, {40, 112}};
  for (const auto& [dim, value_dim] : widths) {
    for (const int64_t rows : {65, 300}) {
      Case& call = cases.add(rows, {64, 64}, rows == 65 ? DType::f16 : DType::bf16);
      call.dim = dim;
      call.value_dim = value_dim;
      call.options.score.scale = dim == 40 ? 0.3f : 0;
      if (dim != 64) {
        call.options.score.sinks = sinks;
      }
    }
  }
  cases.add(200, {128, 0}).options.score.sinks = sinks;
  cases.add(200, {100, 0}).deviation = 8;  // logits of some hundreds
  cases.expect_law();
}

TEST_F(ForwardBand, AnyStridesHoldTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  Cases cases(fresh_seed());
  for (const bool packed : {false, true}) {
    Case& call = cases.add(333, {64, 64});
    call.heads = call.key_heads = 3;
    if (packed) {
      call.batch = 1;
      call.packed_queries = call.packed_keys = {0, 100, 333};
    }
  }
  cases.expect_law(BandExecutor(Layout::rows_first));
}

// Heads and rows such that blocks take many segments and rings go round many times; more heads than
// multiprocessors, too, where blocks take parts of several heads.
TEST_F(ForwardBand, LongCallsHoldTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  Cases cases(fresh_seed());
  const auto shape = [&](int64_t batch, int64_t heads, int64_t key_heads, int64_t rows) {
    Case& call = cases.add(rows, {64, 64});
    call.batch = batch;
    call.heads = heads;
    call.key_heads = key_heads;
  };
  shape(3, 12, 12, 1500);
  shape(1, 3, 1, 20000);
  shape(30, 8, 2, 90);
  shape(2, 150, 150, 130);
  shape(5, 100, 50, 65);
  for (size_t i = 0; i < 3; ++i) {
    ContractCase wide = cases.all[i];
    widen(wide.call, 128);
    cases.all.push_back(wide);
  }
  cases.expect_law();
}

TEST_F(ForwardBand, PackedDocumentsHoldTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  Cases cases(fresh_seed());
  const auto pack = [&](const std::vector<int32_t>& offsets, AttentionVisibility visibility) {
    Case& call = cases.add(offsets.back(), visibility);
    call.batch = 1;
    call.packed_queries = call.packed_keys = offsets;
    return &call;
  };
  for (const int64_t right : {64, 0}) {
    pack({0, 1, 1, 1, 65, 66, 130, 258, 321, 1000}, {64, right});
  }
  // Documents of a tile and less fill the rings; the most that a batch of 40 can be.
  std::vector<int32_t> offsets = {0};
  for (int i = 0; i < 40; ++i) {
    offsets.push_back(offsets.back() + static_cast<int32_t>(cases.below(70)));
  }
  pack(offsets, {64, 64})->key_heads = 4;
  pack(offsets, {128, 0})->key_heads = 1;
  for (int i = 0; i < 12; ++i) {
    offsets = {0};
    const int64_t documents = 1 + cases.below(9);
    for (int64_t n = 0; n < documents; ++n) {
      offsets.push_back(offsets.back() + static_cast<int32_t>(cases.below(400)));
    }
    offsets.back() += 1;
    pack(offsets, {cases.below(65), cases.below(65)});
    widen(*pack(offsets, {64, i}), 128);
  }
  cases.expect_law();
}

// Rows behind the used lengths hold NaN; nothing of it may reach a result.
TEST_F(ForwardBand, NanBehindSequencesStaysThere) {
  FLASHLOOM_NEEDS_GPU();
  Cases cases(fresh_seed());

  struct Used {
    std::vector<int32_t> lengths;
    Tensor tensor;
  };

  std::vector<std::unique_ptr<Used>> keep;
  for (int i = 0; i < 8; ++i) {
    const bool packed = i % 2 == 0;
    Case& call = cases.add(260, {64, i < 4 ? 64 : 0}, i % 4 < 2 ? DType::bf16 : DType::f16);
    std::vector<int32_t> offsets = {0, 140, 150, 160, 400, 660, 780, 908};
    keep.push_back(std::make_unique<Used>());
    Used& used = *keep.back();
    used.lengths = packed ? std::vector<int32_t>{100, 0, 1, 128, 255, 63, 64}
                          : std::vector<int32_t>{0, 65, 260};
    used.tensor = Tensor::index({static_cast<int64_t>(used.lengths.size())}, used.lengths);
    if (packed) {
      call.batch = 1;
      call.queries = call.keys = offsets.back();
      call.packed_queries = call.packed_keys = offsets;
    } else {
      call.batch = 3;
      offsets = {0, 260, 520, 780};
    }
    call.options.sequences.used_query = used.tensor;
    call.options.sequences.used_key = used.tensor;
    const int64_t heads = call.heads;
    const int64_t key_heads = call.key_heads;
    call.change = [&used, offsets, packed, heads, key_heads](Tensor& rows, char name) {
      const TensorView& view = rows.view();
      const int64_t dim = view.dim(view.rank - 1);
      const int64_t stored = view.dim(view.rank - 2);
      const int64_t own_heads = name == 'q' || name == 'd' ? heads : key_heads;
      for (int64_t n = 0; n < rows.size(); ++n) {
        // Rows of all sequences one behind the other.
        const int64_t row =
            n / dim % stored + (packed ? 0 : n / (dim * stored * own_heads) * stored);
        for (size_t s = 0; s < used.lengths.size(); ++s) {
          if (row >= offsets[s] + used.lengths[s] && row < offsets[s + 1]) {
            rows.set(n, std::numeric_limits<double>::quiet_NaN());
          }
        }
      }
    };
  }
  cases.expect_law();
}

TEST_F(ForwardBand, RepeatedRunsGiveTheSameBits) {
  FLASHLOOM_NEEDS_GPU();
  Cases cases(fresh_seed());
  Case& call = cases.add(3000, {64, 64});
  call.heads = 12;
  call.inputs = call.draw(false);
  const auto run = [&] {
    return call.run(AttentionBackend::sm90, false, BandExecutor(), DType::bf16, DType::bf16);
  };
  const Results first = run();
  for (int i = 0; i < 30; ++i) {
    const Results again = run();
    ASSERT_TRUE(again.out.same_bits(first.out) && again.lse.same_bits(first.lse)) << "run " << i;
  }
}

// Small calls for compute-sanitizer.
TEST_F(AttentionSanitizerBand, SmallCalls) {
  FLASHLOOM_NEEDS_GPU();
  Cases cases(fresh_seed());
  cases.add(150, {64, 64}).batch = 1;
  cases.add(65, {128, 0}, DType::f16);
  widen(cases.add(150, {64, 64}), 128);
  Case& packed = cases.add(290, {64, 30});
  packed.batch = 1;
  packed.packed_queries = packed.packed_keys = {0, 1, 65, 65, 200, 290};
  cases.expect_law();
}

/// Shapes alone decide, so no GPU is needed.
struct Shapes {
  AttentionOutputs outputs;
  AttentionInputs inputs;
  AttentionOptions options;

  Shapes(int64_t queries, int64_t keys, int64_t dim, AttentionVisibility visibility) {
    const auto tensor = [](int64_t heads, int64_t rows, int64_t columns) {
      return TensorView(static_cast<void*>(nullptr), DType::bf16, {2, heads, rows, columns},
                        {Device::Kind::cuda, 0});
    };
    inputs = {tensor(8, queries, dim), tensor(2, keys, dim), tensor(2, keys, dim)};
    outputs.out = tensor(8, queries, dim);
    options.visibility = visibility;
  }

  std::optional<int32_t> shift() const { return shift_of(outputs, inputs, options); }
};

TEST(ForwardBandDispatch, TakesWhatThreeTilesOfKeysHold) {
  const auto shift = [](int64_t dim, int64_t left, int64_t right, int64_t keys = 300) {
    return Shapes(300, keys, dim, {left, right}).shift();
  };
  EXPECT_EQ(shift(64, 64, 64), -1);
  EXPECT_EQ(shift(64, 0, 0), 0);
  EXPECT_EQ(shift(64, 128, 0), -2);
  EXPECT_EQ(shift(64, 0, 128), 0);
  EXPECT_EQ(shift(8, 65, 0), -2);
  EXPECT_EQ(shift(128, 64, 64), -1);
  EXPECT_EQ(shift(64, 64, 64, 364), 0) << "the default offset is a tile";
  for (const auto& [left, right] :
       {std::pair(65, 1), {64, 65}, {129, 0}, {0, 129}, {-1, 0}, {64, -1}, {-1, -1}}) {
    EXPECT_FALSE(shift(64, left, right)) << left << ", " << right;
  }
  EXPECT_FALSE(shift(64, 64, 64, 301)) << "an offset of 1 needs a fourth tile";
  EXPECT_FALSE(shift(136, 64, 64));
  EXPECT_FALSE(shift(64, 64, 64, 0)) << "no keys";
}

TEST(ForwardBandDispatch, TakesSequencesOfOneOffset) {
  Shapes shapes(300, 300, 64, {64, 64});
  const int32_t one[3] = {};
  const int32_t other[3] = {};
  const auto index = [](const int32_t* data) {
    return ConstTensorView(static_cast<const void*>(data), DType::i32, {2},
                           {Device::Kind::cuda, 0});
  };
  AttentionSequences& sequences = shapes.options.sequences;
  sequences.used_query = sequences.used_key = index(one);
  EXPECT_EQ(shapes.shift(), -1);
  sequences.used_key = index(other);
  EXPECT_FALSE(shapes.shift()) << "offsets that differ";
  shapes.options.positions.offset = 0;
  EXPECT_EQ(shapes.shift(), -1);
  sequences = {};
  shapes.options.positions = {};
  sequences.cu_query = sequences.cu_key = index(one);
  sequences.max_query = sequences.max_key = 300;
  EXPECT_EQ(shapes.shift(), -1);
  sequences.max_key = 299;
  EXPECT_FALSE(shapes.shift());
  sequences.cu_key = {};
  EXPECT_FALSE(shapes.shift());
}

}  // namespace
}  // namespace flashloom
