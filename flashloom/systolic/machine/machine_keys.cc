#include "flashloom/systolic/machine/machine_keys.h"

#include <fmt/format.h>

#include <charconv>
#include <limits>

#include "flashloom/core/error.h"

namespace flashloom::systolic {
namespace {

int to_int(const MachineValue& value) {
  return static_cast<int>(std::get<int64_t>(value));
}

// One line a parameter: its place in MachineConfig, read and written.
#define FLASHLOOM_INT_KEY(name, place, help)                                           \
  MachineKey {                                                                         \
    name, help, [](const MachineConfig& c) { return MachineValue(int64_t{c.place}); }, \
        [](MachineConfig& c, const MachineValue& v) { c.place = to_int(v); }           \
  }
#define FLASHLOOM_DOUBLE_KEY(name, place, help)                                        \
  MachineKey {                                                                         \
    name, help, [](const MachineConfig& c) { return MachineValue(c.place); },          \
        [](MachineConfig& c, const MachineValue& v) { c.place = std::get<double>(v); } \
  }
#define FLASHLOOM_BOOL_KEY(name, place, help)                                        \
  MachineKey {                                                                       \
    name, help, [](const MachineConfig& c) { return MachineValue(c.place); },        \
        [](MachineConfig& c, const MachineValue& v) { c.place = std::get<bool>(v); } \
  }
#define FLASHLOOM_FORMAT_KEY(name, place, help)                         \
  MachineKey {                                                          \
    name, help,                                                         \
        [](const MachineConfig& c) {                                    \
          return MachineValue(std::string(float_format_name(c.place))); \
        },                                                              \
        [](MachineConfig& c, const MachineValue& v) {                   \
          c.place = parse_float_format(std::get<std::string>(v));       \
        }                                                               \
  }

const MachineKey kKeys[] = {
    FLASHLOOM_INT_KEY("rows", shape.rows, "rows: head dimension, keys of a tile"),
    FLASHLOOM_INT_KEY("columns", shape.columns, "columns: queries of a tile"),
    FLASHLOOM_INT_KEY("pieces", shape.pieces, "chords of exp2, a power of two"),
    FLASHLOOM_INT_KEY("divider-latency", shape.divider_latency, "cycles of a reciprocal"),
    FLASHLOOM_INT_KEY("pe-depth", shape.pe_depth, "stages of a PE's multiply-add, cycles of a hop"),
    FLASHLOOM_BOOL_KEY("shadow", shape.shadow, "queries load into a second register of the PEs"),
    FLASHLOOM_FORMAT_KEY("element", formats.element, "left operands: fp16, bf16, fp32"),
    FLASHLOOM_FORMAT_KEY("accumulator", formats.accumulator, "sums: fp32, fp16, bf16"),
    FLASHLOOM_BOOL_KEY("compat", compat, "with the published defects"),
    FLASHLOOM_DOUBLE_KEY("scale", softmax_scale, "of scores; 0: 1 / sqrt(head dimension)"),
    FLASHLOOM_DOUBLE_KEY("frequency", frequency_ghz, "GHz"),
    FLASHLOOM_INT_KEY("spad-rows", spad_rows, "of the scratchpad; 0: two tiles of Q, K and V"),
    FLASHLOOM_INT_KEY("accumulator-rows", accumulator_rows,
                      "of the accumulation SRAM; 0: sums and one output tile"),
    FLASHLOOM_INT_KEY("slots", controller.slots, "matrix instructions that may overlap, 1 to 3"),
    FLASHLOOM_BOOL_KEY("serial", controller.serial, "matrix instructions do not overlap"),
    FLASHLOOM_INT_KEY("matrix-queue", controller.matrix_queue, "matrix instructions that wait"),
    FLASHLOOM_INT_KEY("ports", dma.ports, "DMA ports; 0: 4, 8 or 16 by rows"),
    FLASHLOOM_INT_KEY("load-queue", dma.load_queue, "loads that wait"),
    FLASHLOOM_INT_KEY("store-queue", dma.store_queue, "stores that wait"),
    FLASHLOOM_INT_KEY("outstanding", dma.outstanding, "rows under way on a port"),
    FLASHLOOM_INT_KEY("channels", memory.channels, "of main memory"),
    FLASHLOOM_DOUBLE_KEY("bandwidth", memory.bytes_per_cycle, "bytes a cycle of all channels"),
    FLASHLOOM_INT_KEY("interleave", memory.interleave, "consecutive bytes of one channel"),
    FLASHLOOM_INT_KEY("latency", memory.latency, "of main memory, cycles"),
    FLASHLOOM_DOUBLE_KEY("stall-chance", memory.stall_chance, "of a row to be held up"),
    FLASHLOOM_INT_KEY("stall-cycles", memory.stall_cycles, "most cycles of such a stall"),
};

#undef FLASHLOOM_INT_KEY
#undef FLASHLOOM_DOUBLE_KEY
#undef FLASHLOOM_BOOL_KEY
#undef FLASHLOOM_FORMAT_KEY

MachineConfig square(std::string_view name, int n) {
  return {.name = std::string(name), .shape = {.rows = n, .columns = n}};
}

constexpr MachinePreset kPresets[] = {
    {"paper", "128 x 128, 1.5 GHz, 512 bytes a cycle (the ports' limit)",
     [] { return square("paper", 128); }},
    {"fpga", "16 x 16, divider of 19 cycles, serial issue: as the published FPGA counter was taken",
     [] {
       MachineConfig config = square("fpga", 16);
       config.shape.divider_latency = 19;
       config.controller.serial = true;
       return config;
     }},
    {"small", "16 x 16", [] { return square("small", 16); }},
    {"tiny", "4 x 4", [] { return square("tiny", 4); }},
};

template <class Number>
bool parse(std::string_view text, Number& number) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

std::span<const MachineKey> machine_keys() {
  return kKeys;
}

const MachineKey* find_machine_key(std::string_view name) {
  for (const MachineKey& key : kKeys) {
    if (key.name == name) {
      return &key;
    }
  }
  return nullptr;
}

void set_machine_value(MachineConfig& config, std::string_view name, std::string_view text) {
  const MachineKey* key = find_machine_key(name);
  if (key == nullptr) {
    throw InvalidArgument("systolic", "machine", "the name of a parameter", name);
  }
  MachineValue value = key->get(config);
  const auto fail = [&](std::string_view expected) {
    throw InvalidArgument("systolic", name, expected, text);
  };
  if (auto* whole = std::get_if<int64_t>(&value)) {
    if (!parse(text, *whole) || *whole > std::numeric_limits<int>::max() ||
        *whole < std::numeric_limits<int>::min()) {
      fail("a whole number");
    }
  } else if (auto* number = std::get_if<double>(&value)) {
    if (!parse(text, *number)) {
      fail("a number");
    }
  } else if (auto* flag = std::get_if<bool>(&value)) {
    *flag = text == "true" || text == "1";
    if (!*flag && text != "false" && text != "0") {
      fail("true or false");
    }
  } else {
    value = std::string(text);
  }
  key->set(config, value);
}

std::string machine_toml(const MachineConfig& config) {
  std::string text;
  for (const MachineKey& key : kKeys) {
    const MachineValue value = key.get(config);
    text += fmt::format("{} = ", key.name);
    if (const auto* whole = std::get_if<int64_t>(&value)) {
      text += fmt::format("{}\n", *whole);
    } else if (const auto* number = std::get_if<double>(&value)) {
      text += fmt::format("{}\n", *number);
    } else if (const auto* flag = std::get_if<bool>(&value)) {
      text += fmt::format("{}\n", *flag);
    } else {
      text += fmt::format("\"{}\"\n", std::get<std::string>(value));
    }
  }
  return text;
}

std::span<const MachinePreset> machine_presets() {
  return kPresets;
}

MachineConfig machine_preset(std::string_view name) {
  std::string known;
  for (const MachinePreset& preset : kPresets) {
    if (preset.name == name) {
      return preset.make();
    }
    known += fmt::format("{}{}", known.empty() ? "" : ", ", preset.name);
  }
  throw InvalidArgument("systolic", "preset", known, name);
}

}  // namespace flashloom::systolic
