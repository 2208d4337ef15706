#pragma once

#include <bit>
#include <cstdint>
#include <vector>

#include "flashloom/systolic/machine/machine_config.h"
#include "flashloom/systolic/plan/plan.h"
#include "rtl/test/engine_trace.h"
#include "rtl/test/verilated_bits.h"

namespace flashloom::rtl {

/// The registers of a verilated fsa_system in the order of systolic::dump(); fields as fsa_pe_block
/// and fsa_cmp_row pack them.
template <typename Model>
std::vector<uint32_t> engine_registers(const Model& model, const systolic::MachineConfig& config,
                                       const ArrayBlocks& blocks) {
  const auto rows = static_cast<size_t>(config.shape.rows);
  const auto columns = static_cast<size_t>(config.shape.columns);
  const auto block_rows = blocks.rows > 0 ? static_cast<size_t>(blocks.rows) : rows;
  const auto block_columns = blocks.columns > 0 ? static_cast<size_t>(blocks.columns) : columns;
  const auto element = static_cast<size_t>(config.formats.element.width());
  const auto sum = static_cast<size_t>(config.formats.accumulator.width());
  const size_t pe_bits = systolic::kControlBits + 2 * element + 2 * sum + 4;
  std::vector<uint32_t> words;
  size_t at = 0;
  const auto take = [&](const auto& port, size_t count) {
    at += count;
    return static_cast<uint32_t>(get_bits(port, at - count, count));
  };
  for (size_t row = 0; row < rows; ++row) {
    for (size_t column = 0; column < columns; ++column) {
      const size_t block = row / block_rows * (columns / block_columns) + column / block_columns;
      at = (block * block_rows * block_columns + row % block_rows * block_columns +
            column % block_columns) *
               pe_bits +
           systolic::kControlBits;
      const uint32_t right_valid = take(model.elements, 1);
      const uint32_t right = take(model.elements, element);
      const uint32_t down_valid = take(model.elements, 1);
      const uint32_t down = take(model.elements, sum);
      const uint32_t up_valid = take(model.elements, 1);
      const uint32_t up = take(model.elements, sum);
      const uint32_t stationary = take(model.elements, element);
      const uint32_t exp2_done = take(model.elements, 1);
      for (const uint32_t word :
           {stationary, exp2_done, right_valid, right, down_valid, down, up_valid, up}) {
        words.push_back(word);
      }
    }
  }
  at = 0;
  const auto piece_bits =
      static_cast<size_t>(std::bit_width(static_cast<unsigned>(config.shape.pieces) - 1));
  constexpr size_t kCommandBits = 1 + 3 + 9;
  for (size_t c = 0; c < columns; ++c) {
    at += kCommandBits;
    const uint32_t out_valid = take(model.comparators, 1);
    const uint32_t out = take(model.comparators, sum);
    const uint32_t old_max = take(model.comparators, sum);
    const uint32_t new_max = take(model.comparators, sum);
    at += piece_bits;
    for (const uint32_t word : {old_max, new_max, out_valid, out}) {
      words.push_back(word);
    }
  }
  at = 0;
  for (size_t c = 0; c < columns; ++c) {
    words.push_back(take(model.scales, sum));
  }
  return words;
}

}  // namespace flashloom::rtl
