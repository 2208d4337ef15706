#include "flashloom/systolic/isa/verilog_package.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <map>
#include <string_view>

#include "flashloom/systolic/isa/isa.h"
#include "flashloom/systolic/plan/plan.h"

namespace flashloom::systolic {
namespace {

constexpr std::string_view kKindNames[] = {"FENCE", "MATRIX", "DMA"};
constexpr std::string_view kWaveNames[] = {"NONE", "PARALLEL", "UP", "DOWN"};

std::string upper(std::string_view name) {
  std::string text(name);
  std::ranges::transform(text, text.begin(), [](unsigned char c) { return std::toupper(c); });
  return text;
}

void constant(std::string& text, std::string_view name, std::string_view value) {
  text += fmt::format("localparam int {} = {};\n", name, value);
}

void constant(std::string& text, std::string_view name, int value) {
  constant(text, name, fmt::format("{}", value));
}

void write_isa(std::string& text) {
  for (int kind = 0; kind < kKindCount; ++kind) {
    constant(text, fmt::format("KIND_{}", kKindNames[kind]), kind);
    constant(text, fmt::format("WORDS_{}", kKindNames[kind]), kInstructionWords[kind]);
  }
  for (int function = 0; function < kFunctionCount; ++function) {
    constant(text,
             fmt::format("FUNCTION_{}", upper(function_name(static_cast<Function>(function)))),
             function);
  }
  constant(text, "DMA_LOAD", 0);
  constant(text, "DMA_STORE", 1);
  for (const FieldFormat& format : field_formats()) {
    const std::string name =
        fmt::format("F_{}_{}", kKindNames[static_cast<size_t>(format.kind)], upper(format.name));
    for (int i = 0; i < format.part_count; ++i) {
      const FieldPart& part = format.parts[i];
      const std::string_view suffix = i == 0 ? "" : "1";
      constant(text, fmt::format("{}_WORD{}", name, suffix), part.word);
      constant(text, fmt::format("{}_HIGH{}", name, suffix), part.high);
      constant(text, fmt::format("{}_LOW{}", name, suffix), part.low);
    }
    if (format.part_count == 2) {
      constant(text, name + "_BITS0", format.parts[1].low_bit_of_value);
    }
    if (format.bias != 0) {
      constant(text, name + "_BIAS", format.bias);
    }
  }
}

void write_plan(std::string& text) {
  for (int bit = 0; bit < kControlBits; ++bit) {
    constant(text,
             fmt::format("CTL_{}", upper(signal_name(static_cast<Signal>(kFirstControlBit + bit)))),
             bit);
  }
  for (size_t wave = 0; wave < std::size(kWaveNames); ++wave) {
    constant(text, fmt::format("WAVE_{}", kWaveNames[wave]), static_cast<int>(wave));
  }
  for (const FunctionTiming& timing : plan_timings()) {
    const std::string name = fmt::format("T_{}", upper(function_name(timing.function)));
    constant(text, name + "_CONFLICT_FREE", describe(timing.conflict_free.published()));
    constant(text, name + "_RELEASE", describe(timing.release.published()));
    constant(text, name + "_BUSY", describe(timing.busy.published()));
  }
  std::map<std::string, int> count;
  for (const Window& window : plan_windows()) {
    const std::string base = fmt::format("W_{}_{}", upper(function_name(window.function)),
                                         upper(signal_name(window.signal)));
    const std::string name = fmt::format("{}_{}", base, count[base]++);
    constant(text, name + "_FIRST", describe(window.first.published()));
    constant(text, name + "_LAST", describe(window.last.published()));
    constant(text, name + "_WAVE",
             fmt::format("WAVE_{}", kWaveNames[static_cast<size_t>(published_wave(window.wave))]));
  }
}

}  // namespace

std::string verilog_constants() {
  std::string text =
      "// Written by systolic_package from the tables of flashloom/systolic (isa/isa.cc and\n"
      "// plan/plan.cc); do not edit. Needs parameters R, C, P and L. Not every module uses all.\n"
      "/* verilator lint_off UNUSED */\n";
  write_isa(text);
  write_plan(text);
  text += "/* verilator lint_on UNUSED */\n";
  return text;
}

}  // namespace flashloom::systolic
