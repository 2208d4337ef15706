#include "flashloom/systolic/array/array_state.h"

#include <fmt/format.h>

#include <iterator>
#include <string_view>

namespace flashloom::systolic {

ArrayState::ArrayState(const MachineConfig& config)
    : rows(config.shape.rows),
      columns(config.shape.columns),
      has_shadow(config.shape.shadow),
      pes(static_cast<size_t>(rows * columns)),
      comparators(static_cast<size_t>(columns)),
      scales(static_cast<size_t>(columns)) {
  const FloatFormat format = config.formats.accumulator;
  for (ComparatorState& comparator : comparators) {
    comparator.old_max = format.sign_bit() | format.infinity();
    comparator.new_max = comparator.old_max;
  }
}

std::vector<uint32_t> dump(const ArrayState& state) {
  std::vector<uint32_t> words;
  words.reserve(state.pes.size() * kPeWords + state.comparators.size() * (kComparatorWords + 1));
  const auto link = [&](const Link& of) {
    words.push_back(of.valid ? 1 : 0);
    words.push_back(of.data);
  };
  for (const PeState& pe : state.pes) {
    words.push_back(pe.reg);
    words.push_back(pe.exp2_done ? 1 : 0);
    link(pe.right);
    link(pe.down);
    link(pe.up);
  }
  for (const ComparatorState& comparator : state.comparators) {
    words.push_back(comparator.old_max);
    words.push_back(comparator.new_max);
    link(comparator.out);
  }
  words.insert(words.end(), state.scales.begin(), state.scales.end());
  if (state.has_shadow) {
    for (const PeState& pe : state.pes) {
      words.push_back(pe.shadow);
      words.push_back(pe.shadow_right);
    }
  }
  return words;
}

std::string dump_name(const MachineConfig& config, size_t index) {
  constexpr std::string_view kPeNames[] = {"reg",        "exp2_done", "right_valid", "right",
                                           "down_valid", "down",      "up_valid",    "up"};
  constexpr std::string_view kComparatorNames[] = {"old_max", "new_max", "out_valid", "out"};
  static_assert(std::size(kPeNames) == kPeWords);
  static_assert(std::size(kComparatorNames) == kComparatorWords);
  const auto columns = static_cast<size_t>(config.shape.columns);
  const size_t pe_words = static_cast<size_t>(config.shape.rows) * columns * kPeWords;
  if (index < pe_words) {
    const size_t pe = index / kPeWords;
    return fmt::format("pe[{}][{}].{}", pe / columns, pe % columns, kPeNames[index % kPeWords]);
  }
  index -= pe_words;
  if (index < columns * kComparatorWords) {
    return fmt::format("comparator[{}].{}", index / kComparatorWords,
                       kComparatorNames[index % kComparatorWords]);
  }
  index -= columns * kComparatorWords;
  if (index < columns) {
    return fmt::format("accumulator[{}].scale", index);
  }
  index -= columns;
  const size_t pe = index / kShadowWords;
  return fmt::format("pe[{}][{}].{}", pe / columns, pe % columns,
                     index % kShadowWords == 0 ? "shadow" : "shadow_right");
}

}  // namespace flashloom::systolic
