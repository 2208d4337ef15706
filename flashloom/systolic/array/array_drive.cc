#include "flashloom/systolic/array/array_drive.h"

#include <fmt/format.h>

#include "flashloom/core/error.h"

namespace flashloom::systolic {
namespace {

// Masks every column, whatever it takes off.
constexpr int kMaskAll = 511;

class Driver {
 public:
  Driver(const MachineConfig& config, ArrayDrive& drive) : config_(config), drive_(drive) {}

  void add(const ActiveInstruction& active, const Window& window, int64_t cycle) {
    const int64_t timer = cycle - active.start;
    const int64_t first = window.first.at(config_.shape);
    const int64_t last = window.last.at(config_.shape);
    if (window.wave != Wave::none) {
      add_control(window, timer, first, last);
    } else if (timer >= first && timer <= last) {
      add_command(active.instruction, window.signal, static_cast<int>(timer - first),
                  timer == last);
    }
  }

 private:
  void add_control(const Window& window, int64_t timer, int64_t first, int64_t last) {
    // Windows with a wave are of signals of PEs, which have a bit (plan_test.cc).
    // NOLINTNEXTLINE(clang-analyzer-core.BitwiseShift)
    const auto bit = static_cast<uint16_t>(1u << control_bit(window.signal));
    for (int row = 0; row < config_.shape.rows; ++row) {
      const int delay = wave_delay(window.wave, config_.shape, row);
      if (timer - delay >= first && timer - delay <= last) {
        claim((drive_.control[static_cast<size_t>(row)] & bit) == 0, window.signal);
        drive_.control[static_cast<size_t>(row)] |= bit;
      }
    }
  }

  void add_command(const Instruction& instruction, Signal signal, int step, bool is_last) {
    switch (signal) {
      case Signal::spad_read:
        border(signal, BorderSource::spad);
        claim(!drive_.shadow_read, signal);
        drive_.spad_row = instruction[Field::spad_row] + step * instruction[Field::spad_stride];
        drive_.reverse_in = instruction[Field::reverse_in] != 0;
        drive_.reverse_out = instruction[Field::reverse_out] != 0;
        drive_.delay = instruction[Field::delay] != 0;
        break;
      case Signal::shadow_read:
        claim(!drive_.shadow_read && drive_.border != BorderSource::spad, signal);
        drive_.shadow_read = true;
        drive_.shadow_row = instruction[Field::spad_row] + step * instruction[Field::spad_stride];
        drive_.shadow_reverse = instruction[Field::reverse_in] != instruction[Field::reverse_out];
        break;
      case Signal::constant_one:
        constant(signal, BorderSource::one, step);
        break;
      case Signal::constant_scale:
        constant(signal, BorderSource::scale, step);
        break;
      case Signal::constant_slopes:
        constant(signal, BorderSource::slope, step);
        break;
      case Signal::compare_update:
        compare(signal, CompareCommand::update);
        drive_.mask_counter = mask_counter(instruction, step);
        break;
      case Signal::compare_send_max:
        compare(signal, CompareCommand::send_max);
        break;
      case Signal::compare_send_difference:
        compare(signal, CompareCommand::send_difference);
        break;
      case Signal::compare_send_zero:
        compare(signal, CompareCommand::send_zero);
        break;
      case Signal::compare_send_intercepts:
        compare(signal, CompareCommand::send_intercepts);
        break;
      case Signal::compare_reset:
        compare(signal, CompareCommand::reset);
        break;
      case Signal::accumulator_read:
        claim(!drive_.accumulator_read, signal);
        drive_.accumulator_read = true;
        drive_.accumulator_zero = instruction[Field::zero] != 0;
        drive_.accumulator_read_row = accumulator_row(instruction, step);
        break;
      case Signal::accumulate_exp_s1:
        accumulate(signal, AccumulateCommand::exp_s1, instruction, step);
        break;
      case Signal::accumulate_exp_s2:
        accumulate(signal, AccumulateCommand::exp_s2, instruction, step);
        break;
      case Signal::accumulate_sum:
        accumulate(signal, AccumulateCommand::sum, instruction, step);
        break;
      case Signal::accumulate_scale:
        accumulate(signal, AccumulateCommand::scale, instruction, step);
        break;
      case Signal::accumulate_set_scale:
        accumulate(signal, AccumulateCommand::set_scale, instruction, step);
        break;
      case Signal::accumulate_reciprocal:
        accumulate(signal, AccumulateCommand::reciprocal, instruction, step);
        drive_.reciprocal_ends = is_last;
        break;
      default:
        break;  // control bits have waves
    }
  }

  static int64_t accumulator_row(const Instruction& instruction, int step) {
    return instruction[Field::accumulator_row] + step * instruction[Field::accumulator_stride];
  }

  static int mask_counter(const Instruction& instruction, int key) {
    if (instruction.matrix_function() == Function::score_limit &&
        key >= instruction[Field::limit]) {
      return kMaskAll;
    }
    return instruction[Field::causal] != 0 ? key : 0;
  }

  void border(Signal signal, BorderSource source) {
    claim(drive_.border == BorderSource::none, signal);
    drive_.border = source;
  }

  // Constants go down the rows as the probabilities' operands do.
  void constant(Signal signal, BorderSource source, int piece) {
    border(signal, source);
    drive_.piece = piece;
    drive_.reverse_in = false;
    drive_.reverse_out = false;
    drive_.delay = true;
  }

  void compare(Signal signal, CompareCommand command) {
    claim(drive_.compare == CompareCommand::none, signal);
    drive_.compare = command;
  }

  void accumulate(Signal signal, AccumulateCommand command, const Instruction& instruction,
                  int step) {
    claim(drive_.accumulate == AccumulateCommand::none, signal);
    drive_.accumulate = command;
    drive_.accumulator_write_row = accumulator_row(instruction, step);
  }

  static void claim(bool free, Signal signal) {
    if (!free) {
      throw Error(
          fmt::format("systolic: two instructions drive {} in one cycle", signal_name(signal)));
    }
  }

  const MachineConfig& config_;
  ArrayDrive& drive_;
};

}  // namespace

ArrayDrive drive_of(const MachineConfig& config, std::span<const ActiveInstruction> active,
                    int64_t cycle) {
  ArrayDrive drive;
  drive.control.resize(static_cast<size_t>(config.shape.rows));
  Driver driver(config, drive);
  for (const ActiveInstruction& of : active) {
    const Function function = planned_as(of.instruction.matrix_function());
    for (const Window& window : plan_windows(config.shape.shadow)) {
      if (window.function == function) {
        driver.add(of, window, cycle);
      }
    }
  }
  return drive;
}

}  // namespace flashloom::systolic
