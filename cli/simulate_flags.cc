#include "cli/simulate_flags.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <limits>

#include "flashloom/systolic/machine/machine_keys.h"

namespace flashloom::cli {
namespace {

int parse_size(const std::string& text, const std::string& whole) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    throw UsageError(fmt::format("--array: expected N or ROWSxCOLUMNS, got {}", whole));
  }
  return value;
}

int to_int(const char* flag, int64_t value) {
  if (value < 0 || value > std::numeric_limits<int>::max()) {
    throw UsageError(
        fmt::format("{}: expected 0 to {}, got {}", flag, std::numeric_limits<int>::max(), value));
  }
  return static_cast<int>(value);
}

}  // namespace

void set_array(systolic::MachineConfig& config, const std::string& text) {
  const size_t cross = text.find('x');
  config.shape.rows = parse_size(text.substr(0, cross), text);
  config.shape.columns =
      cross == std::string::npos ? config.shape.rows : parse_size(text.substr(cross + 1), text);
}

SimulateFlags::SimulateFlags() {
  for (const systolic::MachineKey& key : systolic::machine_keys()) {
    const systolic::MachineValue value = key.get({});
    if (std::holds_alternative<bool>(value)) {
      parameters.emplace_back(false);
    } else if (std::holds_alternative<int64_t>(value)) {
      parameters.emplace_back(std::optional<int64_t>());
    } else if (std::holds_alternative<double>(value)) {
      parameters.emplace_back(std::optional<double>());
    } else {
      parameters.emplace_back(std::optional<std::string>());
    }
  }
}

std::vector<Flag> SimulateFlags::flags() {
  std::vector<std::string> presets;
  for (const systolic::MachinePreset& known : systolic::machine_presets()) {
    presets.emplace_back(known.name);
  }
  std::vector<Flag> all = {
      {"--preset", &preset, "machine to start from", false, presets},
      {"--array", &array, "its array: N, or ROWSxCOLUMNS"},
      {"--seq", &sequence, "queries of a head"},
      {"--keys", &keys, "keys of a head (as --seq)"},
      {"--heads", &heads, "query heads"},
      {"--kv-heads", &key_heads, "key-value heads (as --heads)"},
      {"--head-dim", &head_dim, "of queries and keys (as the array's rows)"},
      {"--value-dim", &value_dim, "of values (as --head-dim)"},
      {"--causal", &causal, "no key behind the query's position"},
  };
  const auto keys_of_machine = systolic::machine_keys();
  for (size_t i = 0; i < keys_of_machine.size(); ++i) {
    const systolic::MachineKey& key = keys_of_machine[i];
    std::visit(
        [&](auto& holder) {
          all.push_back({"--" + std::string(key.name), &holder, std::string(key.help)});
        },
        parameters[i]);
  }
  return all;
}

systolic::MachineConfig SimulateFlags::machine() const {
  systolic::MachineConfig config = systolic::machine_preset(preset);
  const auto keys_of_machine = systolic::machine_keys();
  if (!array.empty()) {
    set_array(config, array);
  }
  for (size_t i = 0; i < keys_of_machine.size(); ++i) {
    std::visit(
        [&](const auto& holder) {
          using Given = std::remove_cvref_t<decltype(holder)>;
          if constexpr (std::is_same_v<Given, bool>) {
            if (holder) {
              keys_of_machine[i].set(config, true);
            }
          } else if constexpr (std::is_same_v<Given, std::optional<int64_t>>) {
            if (holder) {
              keys_of_machine[i].set(
                  config,
                  int64_t{to_int(("--" + std::string(keys_of_machine[i].name)).c_str(), *holder)});
            }
          } else if (holder) {
            keys_of_machine[i].set(config, *holder);
          }
        },
        parameters[i]);
  }
  return config;
}

systolic::AttentionProblem SimulateFlags::problem() const {
  return {.heads = to_int("--heads", heads),
          .key_heads = to_int("--kv-heads", key_heads),
          .queries = to_int("--seq", sequence),
          .keys = to_int("--keys", keys),
          .head_dim = to_int("--head-dim", head_dim),
          .value_dim = to_int("--value-dim", value_dim),
          .causal = causal};
}

}  // namespace flashloom::cli
