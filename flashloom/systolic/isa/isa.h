#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "flashloom/systolic/plan/plan.h"

namespace flashloom::systolic {

/// The instruction set as one table: decoder, encoder, assembler, disassembler and the
/// SystemVerilog package are loops over it. Instructions are little-endian 32-bit words, header
/// first.

enum class Kind : uint8_t { fence = 0, matrix = 1, dma = 2 };
inline constexpr int kKindCount = 3;

/// Words of an instruction, by kind.
inline constexpr std::array<int, kKindCount> kInstructionWords = {1, 3, 4};
inline constexpr int kMostWords = 4;

enum class Field : uint8_t {
  // Matrix and DMA.
  semaphore,
  acquire,  // wait until `semaphore` is free and holds acquire_value, and take it
  acquire_value,
  release,  // write release_value and let it go when done
  release_value,
  function,
  // Matrix.
  wait_previous,   // issue only when every slot is idle
  second_acquire,  // another semaphore to take: an output tile that must be empty
  second_semaphore,
  second_acquire_value,
  spad_row,
  spad_stride,
  reverse_in,   // element i of a scratchpad row becomes element R - 1 - i
  reverse_out,  // the same behind the delays
  delay,        // element i is delayed by i cycles
  accumulator_row,
  accumulator_stride,
  zero,    // the accumulation SRAM reads as zero: first tile
  causal,  // key j of the tile is masked for queries c < j
  limit,   // of score_limit: keys from this one on are masked
  // DMA.
  repeat,  // rows
  sram_row,
  sram_stride,
  is_accumulator,  // the accumulation SRAM, not the scratchpad
  memory_address,  // bytes
  memory_stride,   // bytes from row to row
  row_bytes,
  // Fence: waits until the named engines are idle.
  fence_matrix,
  fence_dma,
  stop,  // the program ends here
};
inline constexpr int kFieldCount = 30;

/// A run of bits of a word that holds the bits of a value from `low_bit_of_value` on.
struct FieldPart {
  int word;
  int high;
  int low;
  int low_bit_of_value = 0;
};

struct FieldFormat {
  Field field;
  Kind kind;
  std::string_view name;
  bool is_signed;
  int bias;  // stored is value - bias
  std::array<FieldPart, 2> parts;
  int part_count;

  constexpr int bits() const {
    int sum = 0;
    for (int i = 0; i < part_count; ++i) {
      sum += parts[i].high - parts[i].low + 1;
    }
    return sum;
  }
};

std::span<const FieldFormat> field_formats();

/// An instruction decoded: its kind and the values of its fields; those of other kinds are zero.
struct Instruction {
  Kind kind = Kind::fence;
  std::array<int64_t, kFieldCount> values = {};

  int64_t operator[](Field field) const { return values[static_cast<size_t>(field)]; }

  int64_t& operator[](Field field) { return values[static_cast<size_t>(field)]; }

  Function matrix_function() const { return static_cast<Function>((*this)[Field::function]); }

  bool is_store() const { return kind == Kind::dma && (*this)[Field::function] == 1; }

  bool operator==(const Instruction&) const = default;
};

/// Mnemonic: "score", "load", "fence", …
std::string_view mnemonic(const Instruction& instruction);

/// Words of the instruction; throws InvalidArgument if a value does not fit its field.
std::array<uint32_t, kMostWords> encode(const Instruction& instruction);

/// The kind that a header names; throws InvalidArgument if there is none.
Kind decode_kind(uint32_t header);

/// Throws InvalidArgument for an unknown function or a reserved bit that is set.
Instruction decode(std::span<const uint32_t> words);

}  // namespace flashloom::systolic
