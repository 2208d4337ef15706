#include "flashloom/systolic/isa/isa.h"

#include <fmt/format.h>

#include <iterator>
#include <string>

#include "flashloom/core/error.h"

namespace flashloom::systolic {
namespace {

constexpr int kTypeLow = 29;

constexpr FieldFormat field(Kind kind, Field id, std::string_view name, FieldPart part,
                            bool is_signed = false, int bias = 0) {
  return {.field = id,
          .kind = kind,
          .name = name,
          .is_signed = is_signed,
          .bias = bias,
          .parts = {part, FieldPart{}},
          .part_count = 1};
}

constexpr FieldFormat split_field(Kind kind, Field id, std::string_view name, FieldPart low,
                                  FieldPart high, bool is_signed = false, int bias = 0) {
  return {.field = id,
          .kind = kind,
          .name = name,
          .is_signed = is_signed,
          .bias = bias,
          .parts = {low, high},
          .part_count = 2};
}

using enum Kind;

// The published layout, and in bits that it leaves free: the second acquire (header [9:1]), the
// limit of score_limit, stored as limit - 1 so that 256 fits; bytes of a DMA row are stored less
// one so that a row of 1,024 fits.
constexpr FieldFormat kFields[] = {
    field(matrix, Field::semaphore, "semaphore", {0, 28, 24}),
    field(matrix, Field::acquire, "acquire", {0, 23, 23}),
    field(matrix, Field::acquire_value, "acquire_value", {0, 22, 20}),
    field(matrix, Field::release, "release", {0, 19, 19}),
    field(matrix, Field::release_value, "release_value", {0, 18, 16}),
    field(matrix, Field::function, "function", {0, 15, 11}),
    field(matrix, Field::wait_previous, "wait_previous", {0, 10, 10}),
    field(matrix, Field::second_acquire, "second_acquire", {0, 9, 9}),
    field(matrix, Field::second_semaphore, "second_semaphore", {0, 8, 4}),
    field(matrix, Field::second_acquire_value, "second_acquire_value", {0, 3, 1}),
    field(matrix, Field::spad_row, "spad_row", {1, 31, 12}),
    field(matrix, Field::spad_stride, "spad_stride", {1, 11, 7}, true),
    field(matrix, Field::reverse_in, "reverse_in", {1, 6, 6}),
    field(matrix, Field::reverse_out, "reverse_out", {1, 5, 5}),
    field(matrix, Field::delay, "delay", {1, 4, 4}),
    field(matrix, Field::accumulator_row, "accumulator_row", {2, 31, 12}),
    field(matrix, Field::accumulator_stride, "accumulator_stride", {2, 11, 7}, true),
    field(matrix, Field::zero, "zero", {2, 6, 6}),
    field(matrix, Field::causal, "causal", {2, 5, 5}),
    split_field(matrix, Field::limit, "limit", {2, 4, 0, 0}, {1, 2, 0, 5}, false, 1),

    field(dma, Field::semaphore, "semaphore", {0, 28, 24}),
    field(dma, Field::acquire, "acquire", {0, 23, 23}),
    field(dma, Field::acquire_value, "acquire_value", {0, 22, 20}),
    field(dma, Field::release, "release", {0, 19, 19}),
    field(dma, Field::release_value, "release_value", {0, 18, 16}),
    field(dma, Field::function, "function", {0, 15, 12}),
    field(dma, Field::repeat, "repeat", {0, 11, 3}),
    field(dma, Field::sram_row, "sram_row", {1, 31, 12}),
    field(dma, Field::sram_stride, "sram_stride", {1, 11, 7}, true),
    field(dma, Field::is_accumulator, "is_accumulator", {1, 6, 6}),
    split_field(dma, Field::memory_address, "memory_address", {2, 31, 25, 0}, {3, 31, 0, 7}),
    split_field(dma, Field::memory_stride, "memory_stride", {2, 24, 10, 0}, {1, 5, 0, 15}, true),
    field(dma, Field::row_bytes, "row_bytes", {2, 9, 0}, false, 1),

    field(fence, Field::fence_matrix, "matrix", {0, 28, 28}),
    field(fence, Field::fence_dma, "dma", {0, 27, 27}),
    field(fence, Field::stop, "stop", {0, 26, 26}),
};

constexpr std::string_view kDmaFunctions[] = {"load", "store"};

constexpr uint32_t part_mask(const FieldPart& part) {
  return static_cast<uint32_t>((uint64_t{2} << (part.high - part.low)) - 1);
}

[[noreturn]] void illegal(std::string_view expected, std::string_view actual) {
  throw InvalidArgument("systolic", "instruction", expected, actual);
}

// score_limit alone has a limit; elsewhere its bits stay zero (value 0).
bool has_field(const Instruction& instruction, Field id) {
  return id != Field::limit || instruction.matrix_function() == Function::score_limit;
}

void check_function(const Instruction& instruction) {
  const int64_t function = instruction[Field::function];
  if (instruction.kind == matrix && function >= kFunctionCount) {
    illegal(fmt::format("a matrix function below {}", kFunctionCount),
            fmt::format("function {}", function));
  }
  if (instruction.kind == dma && function >= static_cast<int64_t>(std::size(kDmaFunctions))) {
    illegal("a DMA function 0 (load) or 1 (store)", fmt::format("function {}", function));
  }
}

}  // namespace

std::span<const FieldFormat> field_formats() {
  return kFields;
}

std::string_view mnemonic(const Instruction& instruction) {
  switch (instruction.kind) {
    case matrix:
      return function_name(instruction.matrix_function());
    case dma:
      return kDmaFunctions[instruction[Field::function]];
    case fence:
      break;
  }
  return "fence";
}

std::array<uint32_t, kMostWords> encode(const Instruction& instruction) {
  check_function(instruction);
  std::array<uint32_t, kMostWords> words = {};
  words[0] = static_cast<uint32_t>(instruction.kind) << kTypeLow;
  for (const FieldFormat& format : kFields) {
    if (format.kind != instruction.kind || !has_field(instruction, format.field)) {
      continue;
    }
    const int64_t value = instruction[format.field] - format.bias;
    const int64_t range = int64_t{1} << format.bits();
    const int64_t low = format.is_signed ? -range / 2 : 0;
    if (value < low || value >= low + range) {
      illegal(fmt::format("{} {} from {} to {}", mnemonic(instruction), format.name,
                          low + format.bias, low + range - 1 + format.bias),
              fmt::format("{}", instruction[format.field]));
    }
    for (int i = 0; i < format.part_count; ++i) {
      const FieldPart& part = format.parts[i];
      const auto bits =
          static_cast<uint32_t>(static_cast<uint64_t>(value) >> part.low_bit_of_value);
      words[part.word] |= (bits & part_mask(part)) << part.low;
    }
  }
  return words;
}

Kind decode_kind(uint32_t header) {
  const uint32_t type = header >> kTypeLow;
  if (type >= kKindCount) {
    illegal("type 0 (fence), 1 (matrix) or 2 (DMA) in bits 31:29 of a header",
            fmt::format("type {} in {:#010x}", type, header));
  }
  return static_cast<Kind>(type);
}

Instruction decode(std::span<const uint32_t> words) {
  if (words.empty()) {
    illegal("a header", "nothing");
  }
  Instruction instruction{.kind = decode_kind(words[0])};
  const auto count = static_cast<size_t>(kInstructionWords[static_cast<size_t>(instruction.kind)]);
  if (words.size() < count) {
    illegal(fmt::format("{} words", count), fmt::format("{}", words.size()));
  }
  for (const FieldFormat& format : kFields) {
    if (format.kind != instruction.kind || !has_field(instruction, format.field)) {
      continue;
    }
    uint64_t stored = 0;
    for (int i = 0; i < format.part_count; ++i) {
      const FieldPart& part = format.parts[i];
      stored |= uint64_t{(words[part.word] >> part.low) & part_mask(part)} << part.low_bit_of_value;
    }
    auto value = static_cast<int64_t>(stored);
    const int bits = format.bits();
    if (format.is_signed && bits > 0 && (stored >> (bits - 1)) != 0) {
      value -= int64_t{1} << bits;
    }
    instruction[format.field] = value + format.bias;
  }
  check_function(instruction);
  // Whatever is not a field is reserved: encoding again finds bits that say nothing.
  const std::array<uint32_t, kMostWords> again = encode(instruction);
  for (size_t i = 0; i < count; ++i) {
    if (again[i] != words[i]) {
      illegal(fmt::format("zeros in the reserved bits of word {} of {}", i, mnemonic(instruction)),
              fmt::format("{:#010x}", words[i] & ~again[i]));
    }
  }
  return instruction;
}

}  // namespace flashloom::systolic
