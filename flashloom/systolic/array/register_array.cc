#include "flashloom/systolic/array/register_array.h"

#include <algorithm>

#include "flashloom/systolic/numeric/units.h"

namespace flashloom::systolic {
namespace {

constexpr bool has(uint16_t control, Signal signal) {
  return (control >> control_bit(signal) & 1) != 0;
}

// A shift register's next state: what comes in first.
template <class T>
void shift_in(std::vector<T>& registers, T value) {
  if (!registers.empty()) {
    std::shift_right(registers.begin(), registers.end(), 1);
    registers.front() = value;
  }
}

}  // namespace

RegisterArray::RegisterArray(const MachineConfig& config)
    : config_(config),
      element_table_(
          exp2_table(config.formats.element, config.formats.accumulator, config.shape.pieces)),
      accumulator_table_(
          exp2_table(config.formats.accumulator, config.formats.accumulator, config.shape.pieces)),
      state_(config),
      commands_(static_cast<size_t>(config.shape.columns - 1)),
      piece_counters_(static_cast<size_t>(config.shape.columns)),
      accumulator_data_(static_cast<size_t>(config.shape.columns)) {
  const auto rows = static_cast<size_t>(config.shape.rows);
  const auto columns = static_cast<size_t>(config.shape.columns);
  const auto depth = static_cast<size_t>(config.shape.pe_depth);
  border_.data.resize(rows);
  shadow_border_.resize(rows);
  stages_.resize(rows * columns, std::vector<Work>(depth - 1));
  for (size_t i = 0; i < rows; ++i) {
    input_delays_.emplace_back(depth * i);
    control_.emplace_back(columns - 1);
  }
  for (size_t c = 0; c < columns; ++c) {
    output_delays_.emplace_back(columns - 1 - c);
  }
}

// The input delayer: what each row of column 0 sees from the left. Its selects hold while data
// drain.
std::vector<uint32_t> RegisterArray::left_inputs() {
  const size_t rows = border_.data.size();
  std::vector<uint32_t> delayed(rows);
  for (size_t i = 0; i < rows; ++i) {
    const uint32_t input = border_.data[border_.reverse_in ? rows - 1 - i : i];
    const bool through = !border_.delay || input_delays_[i].empty();
    delayed[border_.reverse_out ? rows - 1 - i : i] = through ? input : input_delays_[i].back();
    shift_in(input_delays_[i], input);
  }
  return delayed;
}

RegisterArray::Work RegisterArray::begin_work(const PeState& pe, uint16_t control, uint32_t left,
                                              uint32_t from_above, uint32_t from_below) const {
  const ArrayFormats& formats = config_.formats;
  const uint32_t c_in = has(control, Signal::acc_ui) ? from_above : from_below;
  Work work{.control = control, .from_above = from_above, .from_below = from_below};
  if (has(control, Signal::exp2)) {
    const ElementExp2 power = element_exp2(formats, pe.reg, left, c_in, config_.shape.pieces);
    work.out = power.value;
    work.hit = power.hit;
  } else if (has(control, Signal::mac) || has(control, Signal::update_reg)) {
    work.out = fma_dual(formats, pe.reg, left, c_in);
  }
  return work;
}

// `ended` began S - 1 cycles before `begun`, with what the PE's neighbours sent then. What needs no
// arithmetic (right, loads) does not wait.
PeState RegisterArray::next_pe(const PeState& pe, const Work& begun, const Work& ended,
                               const LeftInputs& left) const {
  PeState next = pe;
  const bool load = has(begun.control, Signal::load_reg_li);
  if (load) {
    next.reg = left.operand;
  } else if (has(begun.control, Signal::copy_shadow)) {
    next.reg = pe.shadow;
  } else if (has(begun.control, Signal::load_reg_ui)) {
    next.reg = begun.from_above & config_.formats.element.mask();
  } else if (has(ended.control, Signal::update_reg) || (ended.hit && !pe.exp2_done)) {
    next.reg = ended.out.element;
  }
  if (has(begun.control, Signal::load_shadow)) {
    next.shadow = left.shadow;
    next.shadow_right = pe.shadow;
  }
  next.exp2_done = has(ended.control, Signal::exp2) && (pe.exp2_done || ended.hit);
  const auto drive = [](Link& link, bool valid, uint32_t data) {
    link.valid = valid;
    if (valid) {
      link.data = data;
    }
  };
  const bool mac_down = has(ended.control, Signal::mac) && has(ended.control, Signal::acc_ui);
  const bool mac_up = has(ended.control, Signal::mac) && !has(ended.control, Signal::acc_ui);
  drive(next.right, load || has(begun.control, Signal::flow_lr), load ? pe.reg : left.operand);
  drive(next.down, mac_down || has(ended.control, Signal::flow_ud),
        mac_down ? ended.out.accumulator : ended.from_above);
  drive(next.up, mac_up || has(ended.control, Signal::flow_du),
        mac_up ? ended.out.accumulator : ended.from_below);
  return next;
}

void RegisterArray::step_comparator(int column, const ColumnCommand& command, uint32_t score,
                                    ComparatorState& next) {
  const FloatFormat format = config_.formats.accumulator;
  const ComparatorState& now = state_.comparators[static_cast<size_t>(column)];
  int& counter = piece_counters_[static_cast<size_t>(column)];
  next.out.valid =
      command.command != CompareCommand::none && command.command != CompareCommand::reset;
  switch (command.command) {
    case CompareCommand::none:
      break;
    case CompareCommand::update: {
      const uint32_t masked =
          command.mask_counter != 0 ? format.sign_bit() | format.infinity() : score;
      next.new_max = compare(format, masked, now.new_max).larger;
      next.out.data = convert(config_.formats.element, format, masked);
      break;
    }
    case CompareCommand::send_max: {
      const Compared zero = compare(format, 0, now.new_max);
      next.out.data = zero.difference;
      if (config_.compat) {
        next.new_max = zero.larger;
      }
      break;
    }
    case CompareCommand::send_difference: {
      const Compared step = compare(format, now.old_max, now.new_max);
      next.out.data = step.difference;
      next.old_max = step.larger;
      next.new_max = step.larger;
      break;
    }
    case CompareCommand::send_zero:
      next.out.data = 0;
      break;
    case CompareCommand::send_intercepts:
      next.out.data = encode_intercept(
          format, element_table_.intercepts[static_cast<size_t>(counter)], counter);
      counter = (counter + 1) % config_.shape.pieces;
      break;
    case CompareCommand::reset:
      next.old_max = format.sign_bit() | format.infinity();
      next.new_max = next.old_max;
      break;
  }
}

void RegisterArray::step_accumulators(const ArrayDrive& drive, Sram& accumulators,
                                      std::vector<uint32_t>& next) {
  const FloatFormat format = config_.formats.accumulator;
  const bool writes =
      drive.accumulate == AccumulateCommand::sum || drive.accumulate == AccumulateCommand::scale;
  for (int c = 0; c < config_.shape.columns; ++c) {
    const auto at = static_cast<size_t>(c);
    const uint32_t bottom = state_.pe(config_.shape.rows - 1, c).down.data;
    const uint32_t array = output_delays_[at].empty() ? bottom : output_delays_[at].back();
    shift_in(output_delays_[at], bottom);
    const uint32_t sram = accumulator_data_[at];
    const uint32_t scale = state_.scales[at];
    switch (drive.accumulate) {
      case AccumulateCommand::none:
        break;
      case AccumulateCommand::exp_s1:
        next[at] = fma(format, array, config_.accumulator_scale_bits(), 0);
        break;
      case AccumulateCommand::exp_s2:
        next[at] = accumulator_exp2(format, scale, accumulator_table_);
        break;
      case AccumulateCommand::sum:
        write_.data[at] = fma(format, scale, sram, array);
        break;
      case AccumulateCommand::scale:
        write_.data[at] = fma(format, scale, sram, 0);
        break;
      case AccumulateCommand::set_scale:
        next[at] = sram;
        break;
      case AccumulateCommand::reciprocal:
        next[at] = drive.reciprocal_ends ? reciprocal(format, scale) : scale;
        break;
    }
  }
  if (drive.accumulator_read) {
    const auto row = accumulators.row(drive.accumulator_read_row);
    for (size_t c = 0; c < row.size(); ++c) {
      accumulator_data_[c] = drive.accumulator_zero ? 0 : row[c];
    }
  }
  if (writes) {
    write_.row = drive.accumulator_write_row;
    std::ranges::copy(write_.data, accumulators.row(write_.row).begin());
  }
  wrote_ = writes;
}

RegisterArray::BorderInput RegisterArray::border_of(const ArrayDrive& drive,
                                                    const Sram& spad) const {
  BorderInput next = border_;
  next.valid = drive.border != BorderSource::none;
  if (!next.valid) {
    return next;
  }
  next.reverse_in = drive.reverse_in;
  next.reverse_out = drive.reverse_out;
  next.delay = drive.delay;
  if (drive.border == BorderSource::spad) {
    std::ranges::copy(spad.row(drive.spad_row), next.data.begin());
  } else {
    const uint32_t value = drive.border == BorderSource::one ? config_.formats.element.one()
                           : drive.border == BorderSource::scale
                               ? config_.element_scale_bits()
                               : element_table_.slopes[static_cast<size_t>(drive.piece)];
    std::ranges::fill(next.data, value);
  }
  return next;
}

void RegisterArray::step(const ArrayDrive& drive, const Sram& spad, Sram& accumulators) {
  const int rows = config_.shape.rows;
  const int columns = config_.shape.columns;
  write_.data.resize(static_cast<size_t>(columns));
  ArrayState next = state_;
  step_accumulators(drive, accumulators, next.scales);
  const std::vector<uint32_t> left = left_inputs();
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < columns; ++c) {
      const uint16_t control = c == 0
                                   ? drive.control[static_cast<size_t>(r)]
                                   : control_[static_cast<size_t>(r)][static_cast<size_t>(c - 1)];
      const uint32_t above = r == 0 ? state_.comparators[static_cast<size_t>(c)].out.data
                                    : state_.pe(r - 1, c).down.data;
      const uint32_t below = r == rows - 1 ? 0 : state_.pe(r + 1, c).up.data;
      const LeftInputs from_left =
          c == 0 ? LeftInputs{left[static_cast<size_t>(r)], shadow_border_[static_cast<size_t>(r)]}
                 : LeftInputs{state_.pe(r, c - 1).right.data, state_.pe(r, c - 1).shadow_right};
      const PeState& pe = state_.pe(r, c);
      const Work begun = begin_work(pe, control, from_left.operand, above, below);
      std::vector<Work>& stages = stages_[state_.pe_index(r, c)];
      next.pe(r, c) = next_pe(pe, begun, stages.empty() ? begun : stages.back(), from_left);
      shift_in(stages, begun);
    }
    shift_in(control_[static_cast<size_t>(r)], drive.control[static_cast<size_t>(r)]);
  }
  const ColumnCommand first{drive.compare, drive.mask_counter};
  for (int c = 0; c < columns; ++c) {
    const ColumnCommand& command = c == 0 ? first : commands_[static_cast<size_t>(c - 1)];
    step_comparator(c, command, state_.pe(0, c).up.data, next.comparators[static_cast<size_t>(c)]);
  }
  shift_in(commands_, first);
  for (ColumnCommand& command : commands_) {
    command.mask_counter = std::max(0, command.mask_counter - 1);
  }
  if (drive.shadow_read) {
    const auto row = spad.row(drive.shadow_row);
    std::ranges::copy(row, shadow_border_.begin());
    if (drive.shadow_reverse) {
      std::ranges::reverse(shadow_border_);
    }
  }
  border_ = border_of(drive, spad);
  state_ = std::move(next);
}

}  // namespace flashloom::systolic
