#include "flashloom/systolic/engine/address_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <string_view>

#include "flashloom/core/error.h"

namespace flashloom::systolic {
namespace {

class Checker {
 public:
  Checker(const Instruction& instruction, int index, int64_t cycle)
      : instruction_(instruction), index_(index), cycle_(cycle) {}

  [[noreturn]] void fail(std::string_view expected, std::string_view actual) const {
    throw InvalidArgument(
        "systolic",
        fmt::format("instruction {} ({}) in cycle {}", index_, mnemonic(instruction_), cycle_),
        expected, actual);
  }

  // `count` places from `first`, `stride` apart, each of `size`, within [0, limit).
  void range(std::string_view memory, int64_t first, int64_t stride, int64_t count, int64_t size,
             int64_t limit) const {
    const int64_t last = first + stride * (count - 1);
    const int64_t low = std::min(first, last);
    const int64_t high = std::max(first, last) + size - 1;
    if (count > 0 && (low < 0 || high >= limit)) {
      fail(fmt::format("{} from 0 to {}", memory, limit - 1), fmt::format("{} to {}", low, high));
    }
  }

 private:
  const Instruction& instruction_;
  int index_;
  int64_t cycle_;
};

}  // namespace

int spad_rows_read(const MachineConfig& config, Function function) {
  switch (planned_as(function)) {
    case Function::load_stationary:
      return config.shape.columns;
    case Function::score:
    case Function::value:
      return config.shape.rows;
    default:
      return 0;
  }
}

int accumulator_rows_used(const MachineConfig& config, Function function) {
  switch (planned_as(function)) {
    case Function::score:
    case Function::lse_norm_scale:
      return 1;
    case Function::value:
    case Function::lse_norm:
      return config.shape.rows;
    default:
      return 0;
  }
}

void check_addresses(const MachineConfig& config, int64_t memory_bytes,
                     const Instruction& instruction, int index, int64_t cycle) {
  const Checker check(instruction, index, cycle);
  if (instruction.kind == Kind::matrix) {
    const Function function = instruction.matrix_function();
    check.range("scratchpad rows", instruction[Field::spad_row], instruction[Field::spad_stride],
                spad_rows_read(config, function), 1, config.spad_row_count());
    check.range("accumulation rows", instruction[Field::accumulator_row],
                instruction[Field::accumulator_stride], accumulator_rows_used(config, function), 1,
                config.accumulator_row_count());
    if (config.shape.shadow && function == Function::load_stationary &&
        instruction[Field::delay] != 0) {
      check.fail("a load of shadow registers without delay: it does not pass the delayer",
                 "delay=1");
    }
    if (instruction[Field::causal] != 0 && config.shape.rows != config.shape.columns) {
      check.fail("causal on a square array: its mask compares key and column of one tile",
                 fmt::format("{} x {}", config.shape.rows, config.shape.columns));
    }
  } else if (instruction.kind == Kind::dma) {
    const bool accumulator = instruction[Field::is_accumulator] != 0;
    const int row_bytes = accumulator ? config.accumulator_row_bytes() : config.spad_row_bytes();
    if (instruction[Field::row_bytes] != row_bytes) {
      check.fail(fmt::format("rows of {} bytes, one row of the SRAM", row_bytes),
                 fmt::format("{}", instruction[Field::row_bytes]));
    }
    check.range(accumulator ? "accumulation rows" : "scratchpad rows", instruction[Field::sram_row],
                instruction[Field::sram_stride], instruction[Field::repeat], 1,
                accumulator ? config.accumulator_row_count() : config.spad_row_count());
    check.range("memory bytes", instruction[Field::memory_address],
                instruction[Field::memory_stride], instruction[Field::repeat], row_bytes,
                memory_bytes);
  }
}

}  // namespace flashloom::systolic
