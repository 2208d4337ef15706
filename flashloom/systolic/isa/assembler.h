#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flashloom/systolic/isa/isa.h"

namespace flashloom::systolic {

/// Programs as text: one instruction a line, a mnemonic and `field=value` for every field that is
/// not zero, in the table's order; '#' starts a comment.
///
///   score_limit semaphore=2 acquire=1 acquire_value=1 spad_row=16 … limit=5
///   fence matrix=1 dma=1 stop=1

std::string disassemble(const Instruction& instruction);
/// One line an instruction, numbered by its first word.
std::string disassemble(std::span<const uint32_t> words);

/// Throws InvalidArgument naming the line.
std::vector<Instruction> assemble(std::string_view text);

std::vector<uint32_t> encode_program(std::span<const Instruction> program);
/// Throws InvalidArgument naming the instruction.
std::vector<Instruction> decode_program(std::span<const uint32_t> words);

}  // namespace flashloom::systolic
