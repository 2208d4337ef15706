#include <algorithm>
#include <vector>

#include "flashloom/systolic/array/collapsed_columns.h"
#include "flashloom/systolic/memory/sram.h"
#include "flashloom/systolic/numeric/exp2.h"
#include "flashloom/systolic/numeric/units.h"

namespace flashloom::systolic {
namespace {

void read_numbers(FloatFormat format, const std::byte* from, std::span<uint32_t> to) {
  for (uint32_t& number : to) {
    number = 0;
    for (int i = 0; i < format.width() / 8; ++i) {
      number |= static_cast<uint32_t>(*from++) << (8 * i);
    }
  }
}

class SoftColumns : public CollapsedColumns {
 public:
  SoftColumns(const MachineConfig& config, int first, int count)
      : config_(config),
        first_(first),
        rows_(config.shape.rows),
        count_(count),
        element_table_(
            exp2_table(config.formats.element, config.formats.accumulator, config.shape.pieces)),
        accumulator_table_(exp2_table(config.formats.accumulator, config.formats.accumulator,
                                      config.shape.pieces)),
        spad_(config.spad_row_count(), config.shape.rows),
        accumulators_(config.accumulator_row_count(), count),
        reg_(config.shape.rows, count),
        shadow_(config.shape.rows, count),
        old_max_(static_cast<size_t>(count)),
        new_max_(static_cast<size_t>(count)),
        scale_(static_cast<size_t>(count)) {
    reset_maxima();
  }

  void set_spad_row(int64_t row, const std::byte* elements) override {
    read_numbers(config_.formats.element, elements, spad_.row(row));
  }

  void set_accumulator_row(int64_t row, const std::byte* sums) override {
    read_numbers(config_.formats.accumulator, sums, accumulators_.row(row));
  }

  void get_accumulator_row(int64_t row, std::byte* sums) const override {
    for (const uint32_t number : accumulators_.row(row)) {
      for (int i = 0; i < config_.formats.accumulator.width() / 8; ++i) {
        *sums++ = static_cast<std::byte>(number >> (8 * i));
      }
    }
  }

  // The first row read ends in the last column.
  void load_stationary(const Instruction& instruction) override {
    const bool reversed =
        (instruction[Field::reverse_in] != 0) != (instruction[Field::reverse_out] != 0);
    Sram& to = config_.shape.shadow ? shadow_ : reg_;
    for (int c = 0; c < count_; ++c) {
      const auto query = spad_row(instruction, config_.shape.columns - 1 - (first_ + c));
      for (int r = 0; r < rows_; ++r) {
        to.row(r)[c] = query[reversed ? rows_ - 1 - r : r];
      }
    }
  }

  void score(const Instruction& instruction) override {
    if (config_.shape.shadow) {
      reg_ = shadow_;
    }
    for (int c = 0; c < count_; ++c) {
      score_column(instruction, c);
    }
  }

  void value(const Instruction& instruction) override {
    for (int e = 0; e < rows_; ++e) {
      const auto values = spad_row(instruction, e);
      const auto output = accumulator_row(instruction, e);
      for (int c = 0; c < count_; ++c) {
        uint32_t sum = 0;
        for (int r = 0; r < rows_; ++r) {
          const int key = instruction[Field::reverse_in] != 0 ? rows_ - 1 - r : r;
          sum = fma_dual(config_.formats, reg_.row(r)[c], values[key], sum).accumulator;
        }
        output[c] = accumulated(instruction, scale_[c], output[c], sum);
      }
    }
  }

  void reciprocal(const Instruction& instruction) override {
    const auto sums = accumulator_row(instruction, 0);
    for (int c = 0; c < count_; ++c) {
      scale_[c] = systolic::reciprocal(config_.formats.accumulator,
                                       instruction[Field::zero] != 0 ? 0 : sums[c]);
    }
  }

  void normalise(const Instruction& instruction) override {
    for (int e = 0; e < rows_; ++e) {
      const auto output = accumulator_row(instruction, e);
      for (int c = 0; c < count_; ++c) {
        output[c] = accumulated(instruction, scale_[c], output[c], 0);
      }
    }
    reset_maxima();
  }

 private:
  void reset_maxima() {
    const FloatFormat format = config_.formats.accumulator;
    std::ranges::fill(old_max_, format.sign_bit() | format.infinity());
    std::ranges::fill(new_max_, format.sign_bit() | format.infinity());
  }

  std::span<const uint32_t> spad_row(const Instruction& instruction, int step) const {
    return spad_.row(instruction[Field::spad_row] + step * instruction[Field::spad_stride]);
  }

  std::span<uint32_t> accumulator_row(const Instruction& instruction, int step) {
    return accumulators_.row(instruction[Field::accumulator_row] +
                             step * instruction[Field::accumulator_stride]);
  }

  uint32_t accumulated(const Instruction& instruction, uint32_t scale, uint32_t sram,
                       uint32_t array) const {
    return fma(config_.formats.accumulator, scale, instruction[Field::zero] != 0 ? 0 : sram, array);
  }

  bool masked(const Instruction& instruction, int key, int column) const {
    return (instruction[Field::causal] != 0 && key > column) ||
           (instruction.matrix_function() == Function::score_limit &&
            key >= instruction[Field::limit]);
  }

  void score_column(const Instruction& instruction, int c) {
    const ArrayFormats& formats = config_.formats;
    const FloatFormat sum_format = formats.accumulator;
    std::vector<uint32_t> scores(static_cast<size_t>(rows_));
    for (int j = 0; j < rows_; ++j) {
      const auto key = spad_row(instruction, j);
      uint32_t sum = 0;
      for (int r = rows_ - 1; r >= 0; --r) {
        const int element = instruction[Field::reverse_in] != 0 ? r : rows_ - 1 - r;
        sum = fma_dual(formats, reg_.row(r)[c], key[element], sum).accumulator;
      }
      if (masked(instruction, j, first_ + c)) {
        sum = sum_format.sign_bit() | sum_format.infinity();
      }
      new_max_[c] = compare(sum_format, sum, new_max_[c]).larger;
      scores[j] = convert(formats.element, sum_format, sum);
    }
    const Compared zero = compare(sum_format, 0, new_max_[c]);
    if (config_.compat) {
      new_max_[c] = zero.larger;
    }
    const Compared step = compare(sum_format, old_max_[c], new_max_[c]);
    old_max_[c] = new_max_[c] = step.larger;
    uint32_t row_sum = 0;
    for (int r = 0; r < rows_; ++r) {
      const uint32_t p = probability(scores[rows_ - 1 - r], zero.difference);
      reg_.row(r)[c] = p;
      row_sum = fma_dual(formats, p, formats.element.one(), row_sum).accumulator;
    }
    const uint32_t exponent = fma(sum_format, step.difference, config_.accumulator_scale_bits(), 0);
    scale_[c] = accumulator_exp2(sum_format, exponent, accumulator_table_);
    uint32_t& sum = accumulator_row(instruction, 0)[c];
    sum = accumulated(instruction, scale_[c], sum, row_sum);
  }

  uint32_t probability(uint32_t score, uint32_t minus_max) const {
    const ArrayFormats& formats = config_.formats;
    const uint32_t shifted = fma_dual(formats, score, formats.element.one(), minus_max).element;
    const uint32_t x = fma_dual(formats, shifted, config_.element_scale_bits(), 0).element;
    const auto piece =
        static_cast<size_t>(split_exp2(formats.element, x, config_.shape.pieces).piece);
    const uint32_t intercept = encode_intercept(
        formats.accumulator, element_table_.intercepts[piece], static_cast<int>(piece));
    return element_exp2(formats, x, element_table_.slopes[piece], intercept, config_.shape.pieces)
        .value.element;
  }

  MachineConfig config_;
  int first_;
  int rows_;
  int count_;
  Exp2Table element_table_;
  Exp2Table accumulator_table_;
  Sram spad_;
  Sram accumulators_;
  Sram reg_;     // (R, count): what the PEs keep
  Sram shadow_;  // (R, count): their shadow registers, if they have any
  std::vector<uint32_t> old_max_;
  std::vector<uint32_t> new_max_;
  std::vector<uint32_t> scale_;
};

}  // namespace

std::unique_ptr<CollapsedColumns> soft_columns(const MachineConfig& config, int first, int count) {
  return std::make_unique<SoftColumns>(config, first, count);
}

bool collapses(const Instruction& instruction) {
  const bool delay = instruction[Field::delay] != 0;
  const bool reverse_out = instruction[Field::reverse_out] != 0;
  switch (planned_as(instruction.matrix_function())) {
    case Function::load_stationary:
      return !delay;
    case Function::score:
      return delay && reverse_out;
    case Function::value:
      return delay && !reverse_out;
    default:
      return true;
  }
}

}  // namespace flashloom::systolic
