// Writes the package fsa_config of one configuration to standard output: sizes, formats, the plan's
// windows in cycles of this shape, the instruction table and every constant of the arithmetic.
//   rtl_package [rows=8] [columns=8] [pieces=8] [element=fp16] [accumulator=fp32] [head_dim=rows]
//               [slots=2] [ports=…] [compat=0]

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdint>
#include <exception>
#include <iostream>
#include <map>
#include <numbers>
#include <string>
#include <string_view>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/systolic/isa/verilog_package.h"
#include "flashloom/systolic/numeric/exp2.h"
#include "flashloom/systolic/numeric/float_format.h"
#include "flashloom/systolic/plan/plan.h"

namespace flashloom::systolic {
namespace {

constexpr int kQuotientBits = 2;  // of the divider, a cycle

struct Configuration {
  ArrayShape shape;
  int head_dim = 0;
  int slots = 2;
  int ports = 0;
  int compat = 0;
  ArrayFormats formats;
};

Configuration parse(const std::vector<std::string>& arguments) {
  Configuration configuration;
  const std::map<std::string_view, int*> numbers = {
      {"rows", &configuration.shape.rows},     {"columns", &configuration.shape.columns},
      {"pieces", &configuration.shape.pieces}, {"head_dim", &configuration.head_dim},
      {"slots", &configuration.slots},         {"ports", &configuration.ports},
      {"compat", &configuration.compat}};
  for (const std::string& argument : arguments) {
    const size_t equals = argument.find('=');
    const std::string name = argument.substr(0, equals);
    const std::string value = equals == std::string::npos ? "" : argument.substr(equals + 1);
    if (const auto found = numbers.find(name); found != numbers.end()) {
      const auto [end, fault] =
          std::from_chars(value.data(), value.data() + value.size(), *found->second);
      if (fault != std::errc() || end != value.data() + value.size() || *found->second < 0) {
        throw InvalidArgument("rtl_package", name, "a number", value);
      }
    } else if (name == "element") {
      configuration.formats.element = parse_float_format(value);
    } else if (name == "accumulator") {
      configuration.formats.accumulator = parse_float_format(value);
    } else {
      throw InvalidArgument("rtl_package", "argument", "name=value as in the head of the source",
                            argument);
    }
  }
  const ArrayShape& shape = configuration.shape;
  const auto at_least = [](std::string_view name, int least, int value) {
    if (value < least) {
      throw InvalidArgument("rtl_package", name, fmt::format("{} or more", least),
                            fmt::format("{}", value));
    }
  };
  at_least("rows", 2, shape.rows);  // a wave needs a step
  at_least("columns", 2, shape.columns);
  at_least("pieces", 2, shape.pieces);  // the index of a piece would have no bit
  at_least("slots", 2, configuration.slots);
  if (configuration.head_dim == 0) {
    configuration.head_dim = shape.rows;
  }
  if (configuration.ports == 0) {  // the published sizes
    configuration.ports = shape.rows <= 8 ? 4 : shape.rows <= 64 ? 8 : 16;
  }
  const int precision = configuration.formats.accumulator.fraction_bits + 3;
  configuration.shape.divider_latency = (precision + kQuotientBits - 1) / kQuotientBits + 2;
  return configuration;
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

void write_sizes(const Configuration& configuration) {
  const ArrayShape& shape = configuration.shape;
  const auto& [element, accumulator] = configuration.formats;
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
  number("SLOTS", configuration.slots);
  std::cout << fmt::format("  localparam bit COMPAT = 1'b{};\n", configuration.compat != 0 ? 1 : 0);
  // Two tiles each of Q, K and Vᵀ; sums of the row and Oᵀ. A DMA port moves 64 bits or what it
  // takes to move a row of sums in one cycle through all of them.
  const int spad_rows = 2 * shape.columns + 4 * shape.rows;
  const int beat = std::max(64, shape.rows * 32 / configuration.ports);
  const int spad_beats = shape.rows * element.width() / beat;
  const int sums_beats = shape.columns * accumulator.width() / beat;
  number("SPAD_ROWS", spad_rows);
  number("SPAD_BITS", address_bits(spad_rows));
  number("SPAD_BEAT_BITS", std::max(1, address_bits(spad_beats)));
  number("SUMS_ROWS", shape.rows + 1);
  number("SUMS_BITS", address_bits(shape.rows + 1));
  number("SUMS_BEAT_BITS", std::max(1, address_bits(sums_beats)));
  number("SPAD_BEATS", spad_beats);
  number("SUMS_BEATS", sums_beats);
  number("PORTS", configuration.ports);
  number("BEAT", beat);
  // Entries of the queues, and rows under way on a port; the published sizes.
  number("MATRIX_QUEUE", 8);
  number("LOAD_QUEUE", 16);
  number("STORE_QUEUE", 8);
  number("OUTSTANDING", 16);
  // Bits of fsa_array's outputs for benches.
  number("PE_STATE", kControlBits + 2 * element.width() + 2 * accumulator.width() + 4);
  number("CMP_STATE", 1 + 3 + 9 + 1 + 3 * accumulator.width() + address_bits(shape.pieces));
}

void write_plan(const Configuration& configuration) {
  const ArrayShape& shape = configuration.shape;
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
    wave.push_back(static_cast<uint32_t>(window.wave));
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

// Pieces from zero on: slopes stream from the left, tagged intercepts from above; accumulators keep
// a table of their own.
void write_arithmetic(const Configuration& configuration) {
  const auto& [element, accumulator] = configuration.formats;
  const int pieces = configuration.shape.pieces;
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
  const double scale = std::numbers::log2e / std::sqrt(configuration.head_dim);
  words("ELEMENT_ONE", element.width(), {element.one()});
  words("STREAMED_SCALE", element.width(), {round_double(element, scale)});
  words("SCALE", accumulator.width(), {round_double(accumulator, scale)});
}

void write(const Configuration& configuration) {
  // Files that use the package include it. Not every bench uses all constants.
  std::cout << "// Generated by rtl_package.\n`ifndef FSA_CONFIG_SV\n`define FSA_CONFIG_SV\n"
               "/* verilator lint_off UNUSED */\npackage fsa_config;\n";
  write_sizes(configuration);
  std::cout << verilog_constants();
  std::cout << "/* verilator lint_off UNUSED */\n";
  write_plan(configuration);
  write_arithmetic(configuration);
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
