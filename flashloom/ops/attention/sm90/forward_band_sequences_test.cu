#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "flashloom/ops/attention/sm90/forward_band_test_case.cuh"

// The Hopper forward kernel for narrow bands: packed and used lengths, the same bits every time,
// and small calls for compute-sanitizer.

namespace flashloom {
namespace {

using attention_test::BandCases;
using attention_test::BandExecutor;
using attention_test::Case;
using attention_test::ForwardBand;
using attention_test::fresh_seed;
using attention_test::Results;
using attention_test::Tensor;
using attention_test::widen;

using AttentionSanitizerBand = ForwardBand;

TEST_F(ForwardBand, PackedDocumentsHoldTheLaw) {
  FLASHLOOM_NEEDS_GPU();
  BandCases cases(fresh_seed());
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
  BandCases cases(fresh_seed());

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
  BandCases cases(fresh_seed());
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
  BandCases cases(fresh_seed());
  cases.add(150, {64, 64}).batch = 1;
  cases.add(65, {128, 0}, DType::f16);
  widen(cases.add(150, {64, 64}), 128);
  Case& packed = cases.add(290, {64, 30});
  packed.batch = 1;
  packed.packed_queries = packed.packed_keys = {0, 1, 65, 65, 200, 290};
  cases.expect_law();
}

}  // namespace
}  // namespace flashloom
