#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <span>
#include <vector>

#include "flashloom/systolic/array/collapsed_columns.h"
#include "flashloom/systolic/numeric/exp2.h"
#include "flashloom/systolic/numeric/units.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "flashloom/systolic/array/vector_columns.cc"
// clang-format off: the order matters
#include "hwy/foreach_target.h"
// clang-format on
#include "flashloom/systolic/array/half_numbers-inl.h"
#include "hwy/aligned_allocator.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom::systolic {
namespace HWY_NAMESPACE {
namespace {

using Tag = hn::ScalableTag<float>;
using V = hn::Vec<Tag>;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Without a fused multiply-add the output's update would round twice.
#define FLASHLOOM_FUSED ((HWY_ARCH_X86 && HWY_TARGET <= HWY_AVX2) || HWY_ARCH_ARM_A64)

// Vectors side by side in a strip of columns.
constexpr int kStrip = 2;
// Sums in registers: rows times strip, of 32 registers or of 16.
#if HWY_TARGET <= HWY_AVX3
constexpr int kTileRows = 12;
#else
constexpr int kTileRows = 6;
#endif

// out[i][c] = sum over t of a[i][a_first + t a_step] · b[b_first + t b_step][c], t ascending from
// +0: products of fp16 are exact in float, so each step is one rounding.
struct Product {
  float* out;      // rows of `width`
  const float* b;  // rows of `width`
  int width;
  int depth;
  int a_first;
  int a_step;
  int b_first;
  int b_step;
};

template <int kRows>
HWY_INLINE void product_tile(const Product& p, const float* const* a, int row, int column) {
  const Tag d;
  const auto lanes = static_cast<int>(hn::Lanes(d));
  V sums[kRows][kStrip];
  for (int i = 0; i < kRows; ++i) {
    for (int s = 0; s < kStrip; ++s) {
      sums[i][s] = hn::Zero(d);
    }
  }
  const float* b = p.b + static_cast<ptrdiff_t>(p.b_first) * p.width + column;
  const ptrdiff_t b_step = static_cast<ptrdiff_t>(p.b_step) * p.width;
  const float* rows[kRows];
  for (int i = 0; i < kRows; ++i) {
    rows[i] = a[row + i];
  }
  ptrdiff_t at = p.a_first;
  for (int t = 0; t < p.depth; ++t, at += p.a_step, b += b_step) {
    const V b0 = hn::LoadU(d, b);
    const V b1 = hn::LoadU(d, b + lanes);
    for (int i = 0; i < kRows; ++i) {
      const V x = hn::Set(d, rows[i][at]);
      sums[i][0] = hn::MulAdd(x, b0, sums[i][0]);
      sums[i][1] = hn::MulAdd(x, b1, sums[i][1]);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    float* out = p.out + static_cast<ptrdiff_t>(row + i) * p.width + column;
    hn::StoreU(sums[i][0], d, out);
    hn::StoreU(sums[i][1], d, out + lanes);
  }
}

void product(const Product& p, std::span<const float* const> a) {
  const auto strip = kStrip * static_cast<int>(hn::Lanes(Tag()));
  const auto rows = static_cast<int>(a.size());
  for (int column = 0; column < p.width; column += strip) {
    int row = 0;
    for (; row + kTileRows <= rows; row += kTileRows) {
      product_tile<kTileRows>(p, a.data(), row, column);
    }
    for (; row + 4 <= rows; row += 4) {
      product_tile<4>(p, a.data(), row, column);
    }
    for (; row < rows; ++row) {
      product_tile<1>(p, a.data(), row, column);
    }
  }
}

class VectorColumns : public CollapsedColumns {
 public:
  VectorColumns(const MachineConfig& config, int first, int count)
      : config_(config),
        first_(first),
        rows_(config.shape.rows),
        count_(count),
        width_(static_cast<int>(
            hwy::RoundUpTo(static_cast<size_t>(count), kStrip * hn::Lanes(Tag())))),
        accumulator_table_(exp2_table(kFp32, kFp32, config.shape.pieces)),
        scale_(to_float(config.element_scale_bits())),
        spad_(floats(config.spad_row_count() * rows_)),
        accumulators_(floats(config.accumulator_row_count() * width_)),
        stationary_(floats(rows_ * width_)),
        scores_(floats(rows_ * width_)),
        probabilities_(floats(rows_ * width_)),
        old_max_(floats(width_)),
        new_max_(floats(width_)),
        row_sums_(floats(width_)),
        scales_(floats(width_)),
        row_version_(static_cast<size_t>(config.spad_row_count())),
        operands_(static_cast<size_t>(rows_)) {
    const Exp2Table table = exp2_table(kFp16, kFp32, config.shape.pieces);
    for (size_t i = 0; i < table.slopes.size(); ++i) {
      slopes_.push_back(to_float(table.slopes[i]));
      intercepts_.push_back(std::bit_cast<float>(table.intercepts[i]));
    }
    reset_maxima();
  }

  void set_spad_row(int64_t row, const std::byte* elements) override {
    const Tag d;
    const hn::Rebind<hwy::float16_t, Tag> dh;
    float* to = spad_.data() + row * rows_;
    const auto lanes = static_cast<int>(hn::Lanes(d));
    const auto* from = reinterpret_cast<const hwy::float16_t*>(elements);
    int i = 0;
    for (; i + lanes <= rows_; i += lanes) {
      const V value = hn::PromoteTo(d, hn::LoadU(dh, from + i));
      // Subnormal numbers are zeros of their sign.
      const V zero = hn::CopySignToAbs(hn::Zero(d), value);
      const V flushed = hn::IfThenElse(hn::Lt(hn::Abs(value), hn::Set(d, 0x1p-14f)), zero, value);
      hn::StoreU(canonical(d, flushed), d, to + i);
    }
    for (; i < rows_; ++i) {
      uint16_t bits = 0;
      std::memcpy(&bits, elements + 2 * i, sizeof(bits));
      to[i] = to_float(bits);
    }
    row_version_[static_cast<size_t>(row)] = ++version_;
  }

  void set_accumulator_row(int64_t row, const std::byte* sums) override {
    float* to = accumulators_.data() + row * width_;
    for (int c = 0; c < count_; ++c) {
      uint32_t bits = 0;
      std::memcpy(&bits, sums + 4 * c, sizeof(bits));
      to[c] = std::bit_cast<float>(bits);
    }
  }

  void get_accumulator_row(int64_t row, std::byte* sums) const override {
    std::memcpy(sums, accumulators_.data() + row * width_,
                sizeof(float) * static_cast<size_t>(count_));
  }

  // Transposed once, and taken again while neither the instruction nor its rows change.
  void load_stationary(const Instruction& instruction) override {
    if (!config_.shape.shadow) {
      reg_ = stationary_.data();
    }
    uint64_t newest = 0;
    for (int c = 0; c < config_.shape.columns; ++c) {
      newest = std::max(newest, row_version_[static_cast<size_t>(spad_index(instruction, c))]);
    }
    if (loaded_ == instruction && newest <= loaded_version_) {
      return;
    }
    loaded_ = instruction;
    loaded_version_ = version_;
    const bool reversed =
        (instruction[Field::reverse_in] != 0) != (instruction[Field::reverse_out] != 0);
    for (int c = 0; c < count_; ++c) {
      const float* query = spad_row(instruction, config_.shape.columns - 1 - (first_ + c));
      for (int r = 0; r < rows_; ++r) {
        stationary_.data()[static_cast<ptrdiff_t>(r) * width_ + c] =
            query[reversed ? rows_ - 1 - r : r];
      }
    }
  }

  void score(const Instruction& instruction) override {
    const bool reversed = instruction[Field::reverse_in] != 0;
    if (config_.shape.shadow) {
      reg_ = stationary_.data();
    }
    gather_operands(instruction);
    product({.out = scores_.data(),
             .b = reg_,
             .width = width_,
             .depth = rows_,
             .a_first = reversed ? rows_ - 1 : 0,
             .a_step = reversed ? -1 : 1,
             .b_first = rows_ - 1,
             .b_step = -1},
            operands_);
    const Tag d;
    const auto lanes = static_cast<int>(hn::Lanes(d));
    for (int column = 0; column < width_; column += lanes) {
      find_maxima(instruction, column);
    }
    reg_ = probabilities_.data();
    for (int column = 0; column < width_; column += lanes) {
      find_probabilities(column);
    }
    sum_rows(instruction);
  }

  void value(const Instruction& instruction) override {
    const bool reversed = instruction[Field::reverse_in] != 0;
    gather_operands(instruction);
    product({.out = scores_.data(),
             .b = reg_,
             .width = width_,
             .depth = rows_,
             .a_first = reversed ? rows_ - 1 : 0,
             .a_step = reversed ? -1 : 1,
             .b_first = 0,
             .b_step = 1},
            operands_);
    for (int e = 0; e < rows_; ++e) {
      accumulate(instruction, e, scores_.data() + static_cast<ptrdiff_t>(e) * width_);
    }
  }

  void reciprocal(const Instruction& instruction) override {
    const float* sums = accumulator_row(instruction, 0);
    for (int c = 0; c < count_; ++c) {
      const uint32_t bits = instruction[Field::zero] != 0 ? 0 : std::bit_cast<uint32_t>(sums[c]);
      scales_[static_cast<size_t>(c)] = std::bit_cast<float>(systolic::reciprocal(kFp32, bits));
    }
  }

  void normalise(const Instruction& instruction) override {
    for (int e = 0; e < rows_; ++e) {
      accumulate(instruction, e, nullptr);
    }
    reset_maxima();
  }

 private:
  static float to_float(uint32_t half) { return std::bit_cast<float>(convert(kFp32, kFp16, half)); }

  static std::vector<float> floats(int count) {
    return std::vector<float>(static_cast<size_t>(count));
  }

  void reset_maxima() {
    std::ranges::fill(old_max_, -kInfinity);
    std::ranges::fill(new_max_, -kInfinity);
  }

  static int64_t spad_index(const Instruction& instruction, int step) {
    return instruction[Field::spad_row] + step * instruction[Field::spad_stride];
  }

  const float* spad_row(const Instruction& instruction, int step) const {
    return spad_.data() + spad_index(instruction, step) * rows_;
  }

  float* accumulator_row(const Instruction& instruction, int step) {
    return accumulators_.data() +
           (instruction[Field::accumulator_row] + step * instruction[Field::accumulator_stride]) *
               width_;
  }

  void gather_operands(const Instruction& instruction) {
    for (int i = 0; i < rows_; ++i) {
      operands_[static_cast<size_t>(i)] = spad_row(instruction, i);
    }
  }

  // The comparators on a vector of columns: running maximum, masks, scores to fp16.
  void find_maxima(const Instruction& instruction, int column) {
    const Tag d;
    const bool causal = instruction[Field::causal] != 0;
    const int64_t limit =
        instruction.matrix_function() == Function::score_limit ? instruction[Field::limit] : rows_;
    const V columns = hn::Iota(d, static_cast<float>(first_ + column));
    const V minus_infinity = hn::Set(d, -kInfinity);
    V maximum = hn::LoadU(d, new_max_.data() + column);
    for (int j = 0; j < rows_; ++j) {
      float* at = scores_.data() + static_cast<ptrdiff_t>(j) * width_ + column;
      V s = canonical(d, hn::LoadU(d, at));
      if (causal) {
        s = hn::IfThenElse(hn::Lt(columns, hn::Set(d, static_cast<float>(j))), minus_infinity, s);
      }
      s = j >= limit ? minus_infinity : s;
      maximum = hn::IfThenElse(takes_second(d, hn::Sub(s, maximum)), maximum, s);
      hn::StoreU(round_half(d, s), d, at);
    }
    hn::StoreU(maximum, d, new_max_.data() + column);
  }

  // x = (S - m) · scale, 2^x; PE row r keeps key R - 1 - r, and sums descend.
  void find_probabilities(int column) {
    const Tag d;
    const V maximum = hn::LoadU(d, new_max_.data() + column);
    const V minus_max = canonical(d, hn::Sub(hn::Zero(d), maximum));
    const V scale = hn::Set(d, scale_);
    V sum = hn::Zero(d);
    for (int r = 0; r < rows_; ++r) {
      const V s =
          hn::LoadU(d, scores_.data() + static_cast<ptrdiff_t>(rows_ - 1 - r) * width_ + column);
      const V shifted = round_half(d, add_to_odd(d, s, minus_max));
      const V x = round_half(d, hn::Add(hn::Mul(shifted, scale), hn::Zero(d)));
      const V p = exp2_half(d, x);
      hn::StoreU(p, d, probabilities_.data() + static_cast<ptrdiff_t>(r) * width_ + column);
      sum = hn::Add(sum, p);
    }
    hn::StoreU(canonical(d, sum), d, row_sums_.data() + column);
  }

  HWY_INLINE V exp2_half(Tag d, V x) const {
    const hn::RebindToSigned<Tag> di;
    const auto in_range = hn::Lt(hn::Abs(x), hn::Set(d, 32.0f));
    const V inside = hn::IfThenElseZero(in_range, x);
    const auto integer = hn::ConvertTo(di, inside);
    const V fraction = hn::Sub(inside, hn::ConvertTo(d, integer));
    const auto pieces = static_cast<float>(slopes_.size());
    const auto piece = hn::ConvertTo(di, hn::Mul(hn::Abs(fraction), hn::Set(d, pieces)));
    const V slope = hn::GatherIndex(d, slopes_.data(), piece);
    const V intercept = hn::GatherIndex(d, intercepts_.data(), piece);
    const V chord = add_to_odd(d, intercept, hn::Mul(fraction, slope));
    const V power = hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(integer, hn::Set(di, 127))));
    const V result = hn::IfThenElseZero(in_range, round_half(d, hn::Mul(chord, power)));
    return hn::IfThenElse(hn::IsNaN(x), x, result);
  }

  // The accumulators' part of a score, a column at a time.
  void sum_rows(const Instruction& instruction) {
    const auto bits = [](float x) { return std::bit_cast<uint32_t>(x); };
    float* sums = accumulator_row(instruction, 0);
    for (int c = 0; c < count_; ++c) {
      const auto at = static_cast<size_t>(c);
      if (config_.compat) {
        new_max_[at] = std::bit_cast<float>(compare(kFp32, 0, bits(new_max_[at])).larger);
      }
      const Compared step = compare(kFp32, bits(old_max_[at]), bits(new_max_[at]));
      old_max_[at] = new_max_[at] = std::bit_cast<float>(step.larger);
      const uint32_t exponent = fma(kFp32, step.difference, config_.accumulator_scale_bits(), 0);
      const uint32_t scale = accumulator_exp2(kFp32, exponent, accumulator_table_);
      scales_[at] = std::bit_cast<float>(scale);
      const uint32_t before = instruction[Field::zero] != 0 ? 0 : bits(sums[c]);
      sums[c] = std::bit_cast<float>(fma(kFp32, scale, before, bits(row_sums_[at])));
    }
  }

  // A row of the accumulation SRAM: scale · row + array. Only a product alone can be subnormal
  // (what the array adds is a multiple of 2^-48), and it is judged at 2^64 times its size, where
  // rounding knows no underflow.
  void accumulate(const Instruction& instruction, int step, const float* array) {
    const Tag d;
    const auto lanes = static_cast<int>(hn::Lanes(d));
    float* row = accumulator_row(instruction, step);
    const bool zero = instruction[Field::zero] != 0;
    for (int column = 0; column < width_; column += lanes) {
      const V scale = hn::LoadU(d, scales_.data() + column);
      const V before = zero ? hn::Zero(d) : hn::LoadU(d, row + column);
      const V added = array == nullptr ? hn::Zero(d) : hn::LoadU(d, array + column);
      const V sum = hn::MulAdd(scale, before, added);
      const V scaled = hn::Mul(hn::Mul(scale, hn::Set(d, 0x1p64f)), before);
      const auto tiny =
          hn::And(hn::Lt(hn::Abs(scaled), hn::Set(d, 0x1p-62f)), hn::Eq(added, hn::Zero(d)));
      const V flushed = hn::CopySignToAbs(hn::Zero(d), sum);
      hn::StoreU(canonical(d, hn::IfThenElse(tiny, flushed, sum)), d, row + column);
    }
  }

  MachineConfig config_;
  int first_;
  int rows_;
  int count_;
  int width_;  // count_, up to whole strips; the columns beyond hold garbage that nobody sees
  Exp2Table accumulator_table_;
  std::vector<float> slopes_;
  std::vector<float> intercepts_;
  float scale_;
  std::vector<float> spad_;           // (spad rows, R)
  std::vector<float> accumulators_;   // (accumulator rows, width)
  std::vector<float> stationary_;     // (R, width): loaded queries, the shadow registers if any
  std::vector<float> scores_;         // (R keys, width)
  std::vector<float> probabilities_;  // (R, width)
  std::vector<float> old_max_;        // (width), as the four below
  std::vector<float> new_max_;
  std::vector<float> row_sums_;
  std::vector<float> scales_;
  const float* reg_ = stationary_.data();  // what the PEs keep: queries or probabilities
  std::vector<uint64_t> row_version_;      // when each scratchpad row was written
  uint64_t version_ = 0;
  uint64_t loaded_version_ = 0;
  Instruction loaded_ = {};
  std::vector<const float*> operands_;  // (R) rows of the scratchpad
};

}  // namespace

CollapsedColumns* make_vector_columns(const MachineConfig& config, int first, int count) {
#if FLASHLOOM_FUSED
  return new VectorColumns(config, first, count);
#else
  (void)config;
  (void)first;
  (void)count;
  return nullptr;
#endif
}

#undef FLASHLOOM_FUSED

int strip_columns() {
  return kStrip * static_cast<int>(hn::Lanes(Tag()));
}

}  // namespace HWY_NAMESPACE
}  // namespace flashloom::systolic

HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace flashloom::systolic {

HWY_EXPORT(make_vector_columns);
HWY_EXPORT(strip_columns);

std::unique_ptr<CollapsedColumns> vector_columns(const MachineConfig& config, int first,
                                                 int count) {
  if (config.formats != ArrayFormats{kFp16, kFp32}) {
    return nullptr;
  }
  return std::unique_ptr<CollapsedColumns>(
      HWY_DYNAMIC_DISPATCH(make_vector_columns)(config, first, count));
}

int vector_column_granule() {
  return HWY_DYNAMIC_DISPATCH(strip_columns)();
}

}  // namespace flashloom::systolic

#endif
