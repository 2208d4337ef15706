#include "flashloom/train/report/run_folder.h"

#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <optional>

#include "flashloom/core/error.h"
#include "flashloom/io/mapped_file.h"
#include "flashloom/text/data_reader.h"

namespace flashloom {
namespace {

namespace fs = std::filesystem;

Json read_if_there(const std::string& path) {
  if (!fs::exists(path)) {
    return nullptr;
  }
  const MappedFile file(path);
  Json json = parse_strict_json(file.text(), path);
  if (!json.is_object()) {
    throw IoError(path, "", "expected an object");
  }
  return json;
}

// Collects a log's lines into curves. A log of 100,000 steps has 70 MB, hence simdjson.
class LogReader {
 public:
  explicit LogReader(RunFolder& run) : run_(run) {}

  // Throws simdjson::simdjson_error for what is no line of a log.
  void add(std::string_view line) {
    numbers_.clear();
    std::optional<int64_t> step;
    GuardLine guard;
    auto document = parser_.iterate(
        simdjson::padded_string_view(line.data(), line.size(), line.size() + kPadding));
    for (auto field : document.get_object()) {
      const std::string_view name = field.unescaped_key();
      auto value = field.value();
      const auto type = value.type().value();
      if (type == simdjson::ondemand::json_type::number) {
        const double number = value.get_double();
        if (name == "step") {
          step = static_cast<int64_t>(number);
        } else {
          numbers_.push_back({std::string(name), static_cast<float>(number)});
        }
      } else if (type == simdjson::ondemand::json_type::string) {
        const std::string_view text = value.get_string();
        if (name == "guard") {
          guard.guard = text;
        } else if (name == "finding") {
          guard.finding = text;
        } else if (text == "nan" || text == "inf" || text == "-inf") {
          numbers_.push_back({std::string(name), std::numeric_limits<float>::quiet_NaN()});
        }
      }
    }
    if (!step || *step < 0 || *step > std::numeric_limits<int32_t>::max()) {
      throw simdjson::simdjson_error(simdjson::NO_SUCH_FIELD);
    }
    for (const auto& [name, value] : numbers_) {
      MetricCurve& curve = curve_of(name);
      curve.steps.push_back(static_cast<int32_t>(*step));
      curve.values.push_back(value);
    }
    if (!guard.guard.empty()) {
      guard.step = *step;
      run_.guards.push_back(std::move(guard));
    }
  }

 private:
  static constexpr size_t kPadding = simdjson::SIMDJSON_PADDING;

  // Lines have the same names in the same order, so the next curve is nearly always the one.
  MetricCurve& curve_of(const std::string& name) {
    for (size_t i = 0; i < run_.curves.size(); ++i) {
      next_ = next_ + 1 < run_.curves.size() ? next_ + 1 : 0;
      if (run_.curves[next_].name == name) {
        return run_.curves[next_];
      }
    }
    next_ = run_.curves.size();
    return run_.curves.emplace_back(MetricCurve{.name = name});
  }

  RunFolder& run_;
  simdjson::ondemand::parser parser_;
  std::vector<std::pair<std::string, float>> numbers_;
  size_t next_ = 0;
};

void read_log(const std::string& path, RunFolder& run) {
  if (fs::file_size(path) == 0) {
    return;
  }
  LogReader reader(run);
  std::optional<IoError> damaged;  // an error if a line follows
  read_json_lines(path, [&](std::string_view line, int64_t number) {
    if (damaged) {
      throw *damaged;
    }
    try {
      reader.add(line);
    } catch (const simdjson::simdjson_error& error) {
      damaged.emplace(path, fmt::format("line {}", number),
                      fmt::format("expected an object with a step: {}", error.what()));
    }
  });
}

}  // namespace

const MetricCurve* RunFolder::curve(std::string_view curve_name) const {
  const auto found = std::find_if(curves.begin(), curves.end(), [&](const MetricCurve& curve) {
    return curve.name == curve_name;
  });
  return found == curves.end() ? nullptr : &*found;
}

RunFolder read_run_folder(const std::string& path) {
  const std::string log = path + "/metrics.jsonl";
  RunFolder run = {.path = path,
                   .run = read_if_there(path + "/run.json"),
                   .facts = read_if_there(path + "/facts.json")};
  fs::path last = fs::path(path).lexically_normal();
  last = last.has_filename() ? last.filename() : last.parent_path().filename();
  run.name = last.empty() || last == "."
                 ? fs::absolute(path).lexically_normal().parent_path().filename().string()
                 : last.string();
  if (fs::exists(log)) {
    read_log(log, run);
  } else if (run.run.is_null()) {
    throw IoError(path, "", "expected the --output of a run; there is no metrics.jsonl in it");
  }
  return run;
}

}  // namespace flashloom
