#include "flashloom/train/report/run_comparison.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <set>

#include "flashloom/core/check.h"
#include "flashloom/core/progress.h"
#include "flashloom/train/report/run_outcome.h"

namespace flashloom {
namespace {

enum class Better : uint8_t { neither, less, more };

// Names the runs by their last path parts, as many as it takes until all differ.
void name_apart(std::span<RunFolder> runs) {
  std::vector<std::filesystem::path> paths;
  for (const RunFolder& run : runs) {
    paths.push_back(std::filesystem::absolute(run.path + "/").lexically_normal().parent_path());
  }
  const auto distinct = [&] {
    std::set<std::string> names;
    for (const RunFolder& run : runs) {
      names.insert(run.name);
    }
    return names.size() == runs.size();
  };
  constexpr int kMostParts = 64;  // the same directory named twice has no name of its own
  for (int parts = 2; !distinct() && parts < kMostParts; ++parts) {
    for (size_t r = 0; r < runs.size(); ++r) {
      std::vector<std::string> all;
      for (const auto& part : paths[r]) {
        all.push_back(part.string());
      }
      const size_t first = all.size() - std::min(all.size(), static_cast<size_t>(parts));
      std::filesystem::path name;
      for (size_t i = first; i < all.size(); ++i) {
        name /= all[i];
      }
      runs[r].name = name.string();
    }
  }
}

// Objects become "a.b"; lists stay whole.
void flatten(const Json& value, const std::string& name,
             std::vector<std::pair<std::string, Json>>& out) {
  if (value.is_object()) {
    for (const auto& [key, inner] : value.members()) {
      flatten(inner, name.empty() ? key : fmt::format("{}.{}", name, key), out);
    }
  } else if (!value.is_null()) {
    out.emplace_back(name, value);
  }
}

const Json& part(const Json& object, const char* name) {
  static const Json none;
  const Json* found = object.find(name);
  return found == nullptr ? none : *found;
}

std::vector<std::pair<std::string, Json>> settings_of(const RunFolder& run) {
  std::vector<std::pair<std::string, Json>> values;
  Json settings = part(run.run, "settings");
  for (const char* name : {"data", "eval_data"}) {
    settings.erase(name);
  }
  flatten(settings, "", values);
  flatten(part(run.facts, "choices"), "", values);
  flatten(part(run.facts, "model"), "model", values);
  flatten(part(run.facts, "steps"), "steps", values);
  flatten(part(run.facts, "machine"), "machine", values);
  flatten(part(run.facts, "program"), "program", values);
  return values;
}

std::vector<std::pair<std::string, Json>> data_of(const RunFolder& run) {
  std::vector<std::pair<std::string, Json>> values;
  const Json& settings = part(run.run, "settings");
  const auto side = [&](const char* name, const char* checksum) {
    Json facts = part(part(run.facts, "data"), name);
    facts.erase("lengths");
    flatten(facts, name, values);
    flatten(part(settings, checksum), std::string(name) + ".tokens' checksum", values);
  };
  side("train", "data");
  side("held_out", "eval_data");
  return values;
}

using Reader = std::vector<std::pair<std::string, Json>> (*)(const RunFolder&);

// The names of all runs in the order in which they come first, with what each run has there.
std::vector<ComparedValue> collect(std::span<const RunFolder> runs, Reader read) {
  std::vector<ComparedValue> values;
  for (size_t r = 0; r < runs.size(); ++r) {
    for (auto& [name, value] : read(runs[r])) {
      auto found = std::find_if(values.begin(), values.end(),
                                [&](const ComparedValue& other) { return other.name == name; });
      if (found == values.end()) {
        found =
            values.insert(values.end(), {.name = name, .values = std::vector<Json>(runs.size())});
      }
      found->values[r] = value;
    }
  }
  return values;
}

void keep_differences(std::vector<ComparedValue>& values) {
  std::erase_if(values, [](const ComparedValue& value) {
    return std::all_of(value.values.begin(), value.values.end(),
                       [&](const Json& one) { return one == value.values.front(); });
  });
}

std::vector<std::pair<std::string, Json>> outcome_values(const RunFolder& run) {
  std::vector<std::pair<std::string, Json>> values;
  flatten(to_json(outcome_of(run)), "", values);
  return values;
}

struct Known {
  std::string_view name, label;
  Better better;
};

// The outcome's values in the order in which people ask for them.
constexpr Known kOutcome[] = {
    {"eval_loss_after", "held-out loss after", Better::less},
    {"eval_loss_best", "held-out loss, best", Better::less},
    {"best_step", "at step", Better::neither},
    {"eval_loss_before", "held-out loss before", Better::neither},
    {"loss", "training loss, last tenth", Better::less},
    {"first_loss", "training loss, first step", Better::neither},
    {"steps", "steps", Better::neither},
    {"tokens", "tokens", Better::neither},
    {"seconds", "time in steps", Better::less},
    {"tokens_per_second", "tokens a second", Better::more},
    {"loss_tokens_per_second", "of them bear loss", Better::neither},
    {"mfu", "MFU", Better::more},
    {"packing", "packing", Better::more},
    {"planned_bytes", "memory planned", Better::neither},
    {"peak_bytes", "memory, measured peak", Better::less},
    {"findings", "findings of guards", Better::less},
};

int best_of(const std::vector<Json>& values, Better better) {
  int best = -1;
  bool alone = false;
  for (size_t i = 0; better != Better::neither && i < values.size(); ++i) {
    if (!values[i].is_number()) {
      return -1;
    }
    const double value = values[i].number();
    const double most = best < 0 ? value : values[static_cast<size_t>(best)].number();
    if (best < 0 || (better == Better::less ? value < most : value > most)) {
      best = static_cast<int>(i);
      alone = true;
    } else if (value == most) {
      alone = false;
    }
  }
  return alone && values.size() > 1 ? best : -1;
}

std::string readable(const std::string& name, const Json& value) {
  if (value.is_null()) {
    return "–";
  }
  if (value.is_string()) {
    return value.string();
  }
  if (value.is_array()) {
    std::string text;
    for (const Json& entry : value.elements()) {
      text += (text.empty() ? "" : ", ") + readable("", entry);
    }
    return text;
  }
  if (!value.is_number()) {
    return value.dump();
  }
  const double number = value.number();
  if (name.find("loss_best") != std::string::npos || name == "loss" || name == "first_loss" ||
      name.starts_with("eval_loss")) {
    return fmt::format("{:.4f}", number);
  }
  if (name.ends_with("_bytes")) {
    return format_bytes(static_cast<int64_t>(number));
  }
  if (name == "seconds") {
    return number < 60 ? fmt::format("{:.1f} s", number) : format_duration(number);
  }
  if (name == "mfu" || name == "packing") {
    return fmt::format("{:.1f} %", 100 * number);
  }
  if (name.ends_with("per_second") || name == "tokens") {
    return fmt::format("{:.0f}", number);
  }
  return value.is_integer() ? value.dump() : fmt::format("{:g}", number);
}

std::string_view label_of(const std::string& name) {
  for (const Known& known : kOutcome) {
    if (known.name == name) {
      return known.label;
    }
  }
  return name;
}

// Characters, not bytes, so that columns stand below one another.
size_t width_of(std::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  }));
}

std::string padded(std::string_view text, size_t width) {
  return std::string(text) + std::string(width - std::min(width, width_of(text)), ' ');
}

void append_table(std::string& out, std::string_view title, std::string_view same,
                  const RunComparison& comparison, const std::vector<ComparedValue>& values) {
  if (values.empty()) {
    out += fmt::format("{}: {}\n\n", title, same);
    return;
  }
  std::vector<std::vector<std::string>> rows = {{std::string(title)}};
  rows.front().insert(rows.front().end(), comparison.names.begin(), comparison.names.end());
  for (const ComparedValue& value : values) {
    auto& row = rows.emplace_back();
    row.push_back("  " + std::string(label_of(value.name)));
    for (size_t r = 0; r < value.values.size(); ++r) {
      row.push_back(readable(value.name, value.values[r]) +
                    (value.best == static_cast<int>(r) ? " *" : ""));
    }
  }
  std::vector<size_t> widths(rows.front().size());
  for (const auto& row : rows) {
    for (size_t c = 0; c < row.size(); ++c) {
      widths[c] = std::max(widths[c], width_of(row[c]));
    }
  }
  for (const auto& row : rows) {
    std::string line;
    for (size_t c = 0; c < row.size(); ++c) {
      line += c + 1 < row.size() ? padded(row[c], widths[c] + 2) : row[c];
    }
    out += line + "\n";
  }
  out += "\n";
}

Json list_of(const std::vector<ComparedValue>& values, bool as_text) {
  Json list = Json::array();
  for (const ComparedValue& value : values) {
    Json cells = Json::array();
    for (const Json& cell : value.values) {
      cells.push_back(as_text ? Json(readable(value.name, cell)) : cell);
    }
    Json row = {{"name", as_text ? std::string(label_of(value.name)) : value.name},
                {"values", cells}};
    if (value.best >= 0) {
      row["best"] = value.best;
    }
    list.push_back(std::move(row));
  }
  return list;
}

Json to_json(const RunComparison& comparison, bool as_text) {
  return {{"runs", comparison.names},
          {"settings", list_of(comparison.settings, as_text)},
          {"data", list_of(comparison.data, as_text)},
          {"outcome", list_of(comparison.outcome, as_text)}};
}

}  // namespace

RunComparison compare_runs(std::span<RunFolder> runs) {
  check(runs.size() >= 2, "compare", "runs", "two or more", fmt::format("{}", runs.size()));
  name_apart(runs);
  RunComparison comparison;
  for (const RunFolder& run : runs) {
    comparison.names.push_back(run.name);
  }
  comparison.settings = collect(runs, settings_of);
  keep_differences(comparison.settings);
  comparison.data = collect(runs, data_of);
  keep_differences(comparison.data);
  std::vector<ComparedValue> outcome = collect(runs, outcome_values);
  for (const Known& known : kOutcome) {
    const auto found =
        std::find_if(outcome.begin(), outcome.end(),
                     [&](const ComparedValue& value) { return value.name == known.name; });
    if (found != outcome.end()) {
      found->best = best_of(found->values, known.better);
      comparison.outcome.push_back(std::move(*found));
    }
  }
  return comparison;
}

std::string describe(const RunComparison& comparison) {
  std::string text;
  append_table(text, "settings", "the same", comparison, comparison.settings);
  append_table(text, "data", "the same", comparison, comparison.data);
  append_table(text, "outcome", "nothing was recorded", comparison, comparison.outcome);
  text.pop_back();
  return text;
}

Json to_json(const RunComparison& comparison) {
  return to_json(comparison, /*as_text=*/false);
}

Json to_readable_json(const RunComparison& comparison) {
  return to_json(comparison, /*as_text=*/true);
}

}  // namespace flashloom
