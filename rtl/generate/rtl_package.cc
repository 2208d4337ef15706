// Writes the package fsa_config of one configuration to standard output: sizes, formats, the plan's
// windows in cycles of this shape, the instruction table and every constant of the arithmetic.
//   rtl_package [rows=8] [columns=8] [pieces=8] [element=fp16] [accumulator=fp32] [head_dim=rows]
//               [slots=2] [serial=0] [ports=…] [compat=0] [block_rows=rows] [block_columns=columns]

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <exception>
#include <iostream>
#include <iterator>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/systolic/isa/isa.h"
#include "flashloom/systolic/isa/verilog_package.h"
#include "flashloom/systolic/machine/machine_config.h"
#include "flashloom/systolic/numeric/exp2.h"
#include "flashloom/systolic/numeric/float_format.h"
#include "flashloom/systolic/plan/plan.h"
#include "rtl/generate/control_registers.h"

namespace flashloom::systolic {
namespace {

constexpr int kQuotientBits = 2;            // of the divider, a cycle
constexpr uint32_t kKindMask = 0xE0000000;  // of a header

// What the simulator does not know: how the array is cut into modules.
struct Blocks {
  int rows = 0;
  int columns = 0;
};

struct Request {
  MachineConfig config;
  Blocks blocks;
};

Request parse(const std::vector<std::string>& arguments) {
  Request request;
  auto& [config, blocks] = request;
  int head_dim = 0;
  int compat = 0;
  int serial = 0;
  const std::map<std::string_view, int*> numbers = {{"rows", &config.shape.rows},
                                                    {"columns", &config.shape.columns},
                                                    {"pieces", &config.shape.pieces},
                                                    {"slots", &config.controller.slots},
                                                    {"ports", &config.dma.ports},
                                                    {"head_dim", &head_dim},
                                                    {"serial", &serial},
                                                    {"block_rows", &blocks.rows},
                                                    {"block_columns", &blocks.columns},
                                                    {"compat", &compat}};
  for (const std::string& argument : arguments) {
    const size_t equals = argument.find('=');
    const std::string name = argument.substr(0, equals);
    const std::string value = equals == std::string::npos ? "" : argument.substr(equals + 1);
    if (const auto found = numbers.find(name); found != numbers.end()) {
      const auto [end, fault] =
          std::from_chars(value.data(), value.data() + value.size(), *found->second);
      if (fault != std::errc() || end != value.data() + value.size()) {
        throw InvalidArgument("rtl_package", name, "a number", value);
      }
    } else if (name == "element") {
      config.formats.element = parse_float_format(value);
    } else if (name == "accumulator") {
      config.formats.accumulator = parse_float_format(value);
    } else if (name == "pe-depth" || name == "shadow") {
      throw InvalidArgument("rtl_package", name,
                            "nothing: the SystemVerilog has PEs of one stage without a shadow "
                            "register, the simulator alone knows others",
                            argument);
    } else {
      throw InvalidArgument("rtl_package", "argument", "name=value as in the head of the source",
                            argument);
    }
  }
  const int precision = config.formats.accumulator.fraction_bits + 3;
  config.shape.divider_latency = (precision + kQuotientBits - 1) / kQuotientBits + 2;
  config.compat = compat != 0;
  config.controller.serial = serial != 0;
  blocks.rows = blocks.rows == 0 ? config.shape.rows : blocks.rows;
  blocks.columns = blocks.columns == 0 ? config.shape.columns : blocks.columns;
  if (head_dim != 0) {
    config.softmax_scale = 1 / std::sqrt(static_cast<double>(head_dim));
  }
  check_machine(config);
  // What the SystemVerilog asks for beyond the simulator.
  const auto check = [](std::string_view name, bool good, std::string_view expected, int value) {
    if (!good) {
      throw InvalidArgument("rtl_package", name, expected, fmt::format("{}", value));
    }
  };
  check("pieces", config.shape.pieces >= 2, "2 or more, else a piece has no number",
        config.shape.pieces);
  check("slots", config.controller.slots >= 2, "2 or more", config.controller.slots);
  check("ports", std::has_single_bit(static_cast<unsigned>(config.port_count())), "a power of two",
        config.port_count());
  check("rows", config.spad_row_bytes() % config.beat_bytes() == 0,
        "rows of the scratchpad that are whole beats", config.shape.rows);
  check("columns", config.accumulator_row_bytes() % config.beat_bytes() == 0,
        "rows of sums that are whole beats", config.shape.columns);
  check("block_rows", blocks.rows > 0 && config.shape.rows % blocks.rows == 0,
        "a divisor of the rows", blocks.rows);
  check("block_columns", blocks.columns > 0 && config.shape.columns % blocks.columns == 0,
        "a divisor of the columns", blocks.columns);
  return request;
}

std::string upper(std::string_view name) {
  std::string text(name);
  std::ranges::transform(text, text.begin(), [](unsigned char c) { return std::toupper(c); });
  return text;
}

void number(std::string_view name, int value) {
  std::cout << fmt::format("  localparam int {} = {};\n", name, value);
}

// The first word in the last bits.
void words(std::string_view name, int width, const std::vector<uint32_t>& values) {
  const int count = static_cast<int>(values.size());
  std::cout << fmt::format("  localparam logic [{}:0] {} = {{", count * width - 1, name);
  for (int i = count - 1; i >= 0; --i) {
    std::cout << fmt::format("{}'h{:x}{}", width, values[static_cast<size_t>(i)],
                             i > 0 ? ", " : "");
  }
  std::cout << "};\n";
}

int address_bits(int count) {
  return std::bit_width(static_cast<unsigned>(count) - 1);
}

void write_sizes(const MachineConfig& config) {
  const ArrayShape& shape = config.shape;
  const auto& [element, accumulator] = config.formats;
  number("R", shape.rows);
  number("C", shape.columns);
  number("P", shape.pieces);
  number("L", shape.divider_latency);
  number("EE", element.exponent_bits);
  number("EM", element.fraction_bits);
  number("E", element.width());
  number("AE", accumulator.exponent_bits);
  number("AM", accumulator.fraction_bits);
  number("A", accumulator.width());
  number("PIECE_BITS", address_bits(shape.pieces));
  number("QUOTIENT_BITS", kQuotientBits);
  number("SLOTS", config.controller.slots);
  std::cout << fmt::format("  localparam bit SERIAL = 1'b{};\n", config.controller.serial ? 1 : 0);
  std::cout << fmt::format("  localparam bit COMPAT = 1'b{};\n", config.compat ? 1 : 0);
  const int spad_beats = config.spad_row_bytes() / config.beat_bytes();
  const int sums_beats = config.accumulator_row_bytes() / config.beat_bytes();
  number("SPAD_ROWS", config.spad_row_count());
  number("SPAD_BITS", address_bits(config.spad_row_count()));
  number("SPAD_BEAT_BITS", std::max(1, address_bits(spad_beats)));
  number("SUMS_ROWS", config.accumulator_row_count());
  number("SUMS_BITS", address_bits(config.accumulator_row_count()));
  number("SUMS_BEAT_BITS", std::max(1, address_bits(sums_beats)));
  number("SPAD_BEATS", spad_beats);
  number("SUMS_BEATS", sums_beats);
  number("PORTS", config.port_count());
  number("BEAT", 8 * config.beat_bytes());
  number("MATRIX_QUEUE", config.controller.matrix_queue);
  number("LOAD_QUEUE", config.dma.load_queue);
  number("STORE_QUEUE", config.dma.store_queue);
  number("OUTSTANDING", config.dma.outstanding);
  // Bits of fsa_array's outputs for benches.
  number("PE_STATE", kControlBits + 2 * element.width() + 2 * accumulator.width() + 4);
  number("CMP_STATE", 1 + 3 + 9 + 1 + 3 * accumulator.width() + address_bits(shape.pieces));
}

void write_plan(const MachineConfig& config) {
  const ArrayShape& shape = config.shape;
  number("SIGNALS", kSignalCount);
  number("SIGNAL_BITS", address_bits(kSignalCount));
  number("CONTROL_BITS", kControlBits);
  for (int signal = 0; signal < kSignalCount; ++signal) {
    number("SIGNAL_" + upper(signal_name(static_cast<Signal>(signal))), signal);
  }
  std::vector<uint32_t> function;
  std::vector<uint32_t> signal;
  std::vector<uint32_t> wave;
  std::vector<uint32_t> first;
  std::vector<uint32_t> length;  // less one
  int longest = 0;
  for (const Window& window : plan_windows()) {
    function.push_back(static_cast<uint32_t>(window.function));
    signal.push_back(static_cast<uint32_t>(window.signal));
    wave.push_back(static_cast<uint32_t>(published_wave(window.wave)));
    first.push_back(static_cast<uint32_t>(window.first.at(shape)));
    length.push_back(static_cast<uint32_t>(window.last.at(shape) - window.first.at(shape)));
    longest = std::max(longest, window.last.at(shape));
  }
  std::vector<uint32_t> planned;
  std::vector<uint32_t> last_timer;
  std::vector<uint32_t> conflict_free;
  std::vector<uint32_t> release;
  for (int code = 0; code < kFunctionCount; ++code) {
    const FunctionTiming& timing = plan_timing(static_cast<Function>(code));
    planned.push_back(static_cast<uint32_t>(planned_as(static_cast<Function>(code))));
    last_timer.push_back(static_cast<uint32_t>(timing.busy.at(shape) - 1));
    conflict_free.push_back(static_cast<uint32_t>(timing.conflict_free.at(shape)));
    release.push_back(static_cast<uint32_t>(timing.release.at(shape)));
    longest = std::max(longest, timing.busy.at(shape));
  }
  // Codes without a function: vectors stay in range.
  for (auto* list : {&planned, &last_timer, &conflict_free, &release}) {
    list->resize(8, 0);
  }
  const int timer_bits = address_bits(longest + 1);
  number("TIMER_BITS", timer_bits);
  number("WINDOWS", static_cast<int>(first.size()));
  words("WINDOW_FUNCTION", 3, function);
  words("WINDOW_SIGNAL", address_bits(kSignalCount), signal);
  words("WINDOW_WAVE", 2, wave);
  words("WINDOW_FIRST", timer_bits, first);
  words("WINDOW_LENGTH", timer_bits, length);
  words("PLANNED_AS", 3, planned);
  words("LAST_TIMER", timer_bits, last_timer);
  words("CONFLICT_FREE", timer_bits, conflict_free);
  words("RELEASE", timer_bits, release);
}

// A bit for each bit of an instruction's words that belongs to a field, but for score_limit's
// limit.
void write_fields() {
  std::array<std::array<uint32_t, kMostWords>, kKindCount> fields = {};
  std::array<uint32_t, kMostWords> limit = {};
  for (const FieldFormat& format : field_formats()) {
    auto& to = format.field == Field::limit ? limit : fields[static_cast<size_t>(format.kind)];
    for (int i = 0; i < format.part_count; ++i) {
      const FieldPart& part = format.parts[static_cast<size_t>(i)];
      to[static_cast<size_t>(part.word)] |=
          static_cast<uint32_t>((uint64_t{2} << part.high) - (uint64_t{1} << part.low));
    }
  }
  for (auto& words_of : fields) {
    words_of[0] |= kKindMask;
  }
  const auto list = [](const auto& of) { return std::vector<uint32_t>(of.begin(), of.end()); };
  words("FIELDS_FENCE", 32, {fields[static_cast<size_t>(Kind::fence)][0]});
  words("FIELDS_MATRIX", 32, list(fields[static_cast<size_t>(Kind::matrix)]));
  words("FIELDS_DMA", 32, list(fields[static_cast<size_t>(Kind::dma)]));
  words("FIELDS_LIMIT", 32, list(limit));
  number("FUNCTIONS", kFunctionCount);
}

void write_control() {
  number("WORD_QUEUE", rtl::kWordQueue);
  for (const rtl::ControlRegister& entry : rtl::kControlRegisters) {
    number("REGISTER_" + upper(entry.name), static_cast<int>(entry.offset / 4));
  }
  for (size_t i = 0; i < std::size(rtl::kStates); ++i) {
    number("STATE_" + upper(rtl::kStates[i]), static_cast<int>(i));
  }
  for (size_t i = 0; i < std::size(rtl::kErrors); ++i) {
    number("ERROR_" + upper(rtl::kErrors[i]), static_cast<int>(i));
  }
}

// Pieces from zero on: slopes stream from the left, tagged intercepts from above; accumulators keep
// a table of their own.
void write_arithmetic(const MachineConfig& config) {
  const auto& [element, accumulator] = config.formats;
  const int pieces = config.shape.pieces;
  const Exp2Table streamed = exp2_table(element, accumulator, pieces);
  std::vector<uint32_t> tagged;
  tagged.reserve(streamed.intercepts.size());
  for (int piece = 0; piece < pieces; ++piece) {
    tagged.push_back(
        encode_intercept(accumulator, streamed.intercepts[static_cast<size_t>(piece)], piece));
  }
  words("STREAMED_SLOPES", element.width(), streamed.slopes);
  words("STREAMED_INTERCEPTS", accumulator.width(), tagged);
  const Exp2Table local = exp2_table(accumulator, accumulator, pieces);
  words("SLOPES", accumulator.width(), local.slopes);
  words("INTERCEPTS", accumulator.width(), local.intercepts);
  words("ELEMENT_ONE", element.width(), {element.one()});
  words("STREAMED_SCALE", element.width(), {config.element_scale_bits()});
  words("SCALE", accumulator.width(), {config.accumulator_scale_bits()});
}

void write(const Request& request) {
  const MachineConfig& config = request.config;
  // Files that use the package include it. Not every bench uses all constants.
  std::cout << "// Generated by rtl_package.\n`ifndef FSA_CONFIG_SV\n`define FSA_CONFIG_SV\n"
               "/* verilator lint_off UNUSED */\npackage fsa_config;\n";
  write_sizes(config);
  number("BLOCK_R", request.blocks.rows);
  number("BLOCK_C", request.blocks.columns);
  std::cout << verilog_constants();
  std::cout << "/* verilator lint_off UNUSED */\n";
  write_fields();
  write_control();
  write_plan(config);
  write_arithmetic(config);
  std::cout << "endpackage\n/* verilator lint_on UNUSED */\n`endif\n";
}

}  // namespace
}  // namespace flashloom::systolic

int main(int count, char** arguments) {
  try {
    flashloom::systolic::write(
        flashloom::systolic::parse(std::vector<std::string>(arguments + 1, arguments + count)));
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
  return 0;
}
