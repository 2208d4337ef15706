#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "flashloom/systolic/isa/isa.h"
#include "flashloom/systolic/machine/machine_config.h"

namespace flashloom::systolic {

/// Some columns of the array, a matrix instruction at a time: the same operations in the same order
/// as register by register, without the cycles between. Columns never speak to each other, so any
/// cut of the array gives the same bits.
///
/// Instructions must have the delays of their wave: none for load_stationary, delay and reverse_out
/// for scores, delay alone for values; other combinations skew rows against each other and exist
/// only register by register.
class CollapsedColumns {
 public:
  CollapsedColumns() = default;
  CollapsedColumns(const CollapsedColumns&) = delete;
  CollapsedColumns& operator=(const CollapsedColumns&) = delete;
  virtual ~CollapsedColumns() = default;

  /// A scratchpad row of R elements, as in main memory.
  virtual void set_spad_row(int64_t row, const std::byte* elements) = 0;
  /// This block's columns of a row of the accumulation SRAM, as in main memory.
  virtual void set_accumulator_row(int64_t row, const std::byte* sums) = 0;
  virtual void get_accumulator_row(int64_t row, std::byte* sums) const = 0;

  virtual void load_stationary(const Instruction& instruction) = 0;
  virtual void score(const Instruction& instruction) = 0;
  virtual void value(const Instruction& instruction) = 0;
  virtual void reciprocal(const Instruction& instruction) = 0;
  virtual void normalise(const Instruction& instruction) = 0;
};

/// Any formats, with the integer arithmetic.
std::unique_ptr<CollapsedColumns> soft_columns(const MachineConfig& config, int first, int count);

/// fp16 elements and fp32 sums with vectors; null where the machine's vectors have no fused
/// multiply-add, or for other formats.
std::unique_ptr<CollapsedColumns> vector_columns(const MachineConfig& config, int first, int count);

/// Columns that vector_columns() computes at once; blocks are multiples of it.
int vector_column_granule();

/// True if the instruction's delays are those of its wave.
bool collapses(const Instruction& instruction);

}  // namespace flashloom::systolic
