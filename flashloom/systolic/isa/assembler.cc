#include "flashloom/systolic/isa/assembler.h"

#include <fmt/format.h>

#include <charconv>
#include <optional>

#include "flashloom/core/error.h"

namespace flashloom::systolic {
namespace {

std::vector<std::string_view> words_of(std::string_view line) {
  line = line.substr(0, line.find('#'));
  std::vector<std::string_view> words;
  constexpr std::string_view kSpace = " \t\r";
  for (size_t at = line.find_first_not_of(kSpace); at != std::string_view::npos;
       at = line.find_first_not_of(kSpace, at)) {
    const size_t end = std::min(line.find_first_of(kSpace, at), line.size());
    words.push_back(line.substr(at, end - at));
    at = end;
  }
  return words;
}

std::optional<Instruction> parse_mnemonic(std::string_view name) {
  Instruction instruction;
  if (name == "fence") {
    return instruction;
  }
  for (int function = 0; function < kFunctionCount; ++function) {
    instruction.kind = Kind::matrix;
    instruction[Field::function] = function;
    if (mnemonic(instruction) == name) {
      return instruction;
    }
  }
  for (int function = 0; function < 2; ++function) {
    instruction.kind = Kind::dma;
    instruction[Field::function] = function;
    if (mnemonic(instruction) == name) {
      return instruction;
    }
  }
  return std::nullopt;
}

const FieldFormat* find_field(Kind kind, std::string_view name) {
  for (const FieldFormat& format : field_formats()) {
    if (format.kind == kind && format.name == name && format.field != Field::function) {
      return &format;
    }
  }
  return nullptr;
}

[[noreturn]] void fail(int line, std::string_view expected, std::string_view actual) {
  throw InvalidArgument("systolic", fmt::format("line {}", line), expected, actual);
}

Instruction parse_line(std::span<const std::string_view> words, int line) {
  std::optional<Instruction> instruction = parse_mnemonic(words[0]);
  if (!instruction) {
    fail(line, "a mnemonic such as score, load or fence", words[0]);
  }
  for (const std::string_view word : words.subspan(1)) {
    const size_t equals = word.find('=');
    const FieldFormat* format = find_field(instruction->kind, word.substr(0, equals));
    if (equals == std::string_view::npos || format == nullptr) {
      fail(line, fmt::format("field=value with a field of {}", words[0]), word);
    }
    const std::string_view digits = word.substr(equals + 1);
    int64_t value = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
    if (error != std::errc() || end != digits.data() + digits.size()) {
      fail(line, "an integer", word);
    }
    (*instruction)[format->field] = value;
  }
  try {
    encode(*instruction);
  } catch (const InvalidArgument& error) {
    fail(line, "an instruction that can be encoded", error.what());
  }
  return *instruction;
}

}  // namespace

std::string disassemble(const Instruction& instruction) {
  std::string text{mnemonic(instruction)};
  for (const FieldFormat& format : field_formats()) {
    if (format.kind == instruction.kind && format.field != Field::function &&
        instruction[format.field] != 0) {
      text += fmt::format(" {}={}", format.name, instruction[format.field]);
    }
  }
  return text;
}

std::string disassemble(std::span<const uint32_t> words) {
  std::string text;
  size_t at = 0;
  for (const Instruction& instruction : decode_program(words)) {
    text += fmt::format("{}  # word {}\n", disassemble(instruction), at);
    at += static_cast<size_t>(kInstructionWords[static_cast<size_t>(instruction.kind)]);
  }
  return text;
}

std::vector<Instruction> assemble(std::string_view text) {
  std::vector<Instruction> program;
  int line = 0;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    ++line;
    const std::vector<std::string_view> words = words_of(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    if (!words.empty()) {
      program.push_back(parse_line(words, line));
    }
  }
  return program;
}

std::vector<uint32_t> encode_program(std::span<const Instruction> program) {
  std::vector<uint32_t> words;
  for (const Instruction& instruction : program) {
    const std::array<uint32_t, kMostWords> encoded = encode(instruction);
    const int count = kInstructionWords[static_cast<size_t>(instruction.kind)];
    words.insert(words.end(), encoded.begin(), encoded.begin() + count);
  }
  return words;
}

std::vector<Instruction> decode_program(std::span<const uint32_t> words) {
  std::vector<Instruction> program;
  size_t at = 0;
  while (at < words.size()) {
    try {
      program.push_back(decode(words.subspan(at)));
    } catch (const InvalidArgument& error) {
      throw InvalidArgument("systolic", fmt::format("instruction {} (word {})", program.size(), at),
                            "a legal instruction", error.what());
    }
    at += static_cast<size_t>(kInstructionWords[static_cast<size_t>(program.back().kind)]);
  }
  return program;
}

}  // namespace flashloom::systolic
