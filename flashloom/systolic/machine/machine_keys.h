#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "flashloom/systolic/machine/machine_config.h"

namespace flashloom::systolic {

/// The parameters of a machine by name: flags of the program, keys of its TOML files, axes of
/// sweeps and the echo in reports are this one table.

using MachineValue = std::variant<int64_t, double, bool, std::string>;

struct MachineKey {
  std::string_view name;
  std::string_view help;
  MachineValue (*get)(const MachineConfig&);
  void (*set)(MachineConfig&, const MachineValue&);
};

std::span<const MachineKey> machine_keys();
/// Null if there is none.
const MachineKey* find_machine_key(std::string_view name);
/// Sets a parameter from text; throws InvalidArgument for an unknown name or a value of another
/// kind.
void set_machine_value(MachineConfig& config, std::string_view name, std::string_view text);

/// "rows = 128\ncolumns = 128\n…": what `flashloom simulate --config` reads back.
std::string machine_toml(const MachineConfig& config);

struct MachinePreset {
  std::string_view name;
  std::string_view summary;
  MachineConfig (*make)();
};

std::span<const MachinePreset> machine_presets();
/// Throws InvalidArgument naming the presets.
MachineConfig machine_preset(std::string_view name);

}  // namespace flashloom::systolic
