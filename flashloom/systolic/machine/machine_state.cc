#include "flashloom/systolic/machine/machine_state.h"

namespace flashloom::systolic {

void move_row(const MachineConfig& config, const Instruction& instruction, int64_t row,
              MachineState& state) {
  const bool accumulator = instruction[Field::is_accumulator] != 0;
  const FloatFormat format = accumulator ? config.formats.accumulator : config.formats.element;
  Sram& sram = accumulator ? state.accumulators : state.spad;
  const int64_t address =
      instruction[Field::memory_address] + row * instruction[Field::memory_stride];
  const int bytes = format.width() / 8;
  const auto numbers =
      sram.row(instruction[Field::sram_row] + row * instruction[Field::sram_stride]);
  for (size_t i = 0; i < numbers.size(); ++i) {
    const int64_t at = address + static_cast<int64_t>(i) * bytes;
    if (instruction.is_store()) {
      state.memory.store(format, at, numbers[i]);
    } else {
      numbers[i] = state.memory.load(format, at);
    }
  }
}

}  // namespace flashloom::systolic
