#include "flashloom/train/run_record.h"

#include <fmt/format.h>

#include <filesystem>

#include "flashloom/core/error.h"
#include "flashloom/io/atomic_file.h"
#include "flashloom/io/checksum.h"
#include "flashloom/io/mapped_file.h"
#include "flashloom/json/json.h"

namespace flashloom {
namespace {

std::string path_of(const std::string& output) {
  return output + "/run.json";
}

Json read(const std::string& output) {
  const MappedFile file(path_of(output));
  return parse_strict_json(file.text(), file.path());
}

std::string text(const Json& object, std::string_view name) {
  const Json* found = object.find(name);
  return found == nullptr ? "nothing" : found->dump();
}

}  // namespace

void write_run_record(const std::string& output, const RunRecord& record) {
  Json settings = Json::object();
  for (const Metric& setting : record.settings) {
    std::visit([&](const auto& value) { settings[setting.name] = value; }, setting.value);
  }
  const Json json = {{"settings", settings},
                     {"bin_capacity", record.shape.bin_capacity},
                     {"bins_per_step", record.shape.bins_per_step}};
  write_file_atomically(path_of(output), json.dump(2) + "\n");
}

std::optional<StepShape> recorded_shape(const std::string& output) {
  if (!std::filesystem::exists(path_of(output))) {
    return std::nullopt;
  }
  try {
    const Json json = read(output);
    const auto number = [&](const char* name) {
      const auto value = json.at(name).integer();
      if (value < 1) {
        throw IoError(path_of(output), name, fmt::format("expected 1 or more, found {}", value));
      }
      return value;
    };
    return StepShape{.bin_capacity = number("bin_capacity"),
                     .bins_per_step = number("bins_per_step")};
  } catch (const JsonError& error) {
    throw IoError(path_of(output), "", error.what());
  }
}

void require_same_settings(const std::string& output, std::span<const Metric> settings) {
  Json was;
  try {
    was = read(output).at("settings");
  } catch (const JsonError& error) {
    throw IoError(path_of(output), "", error.what());
  }
  std::string differences;
  for (const Metric& setting : settings) {
    const Json now = std::visit([](const auto& value) { return Json(value); }, setting.value);
    const Json* before = was.find(setting.name);
    if (before == nullptr || *before != now) {
      differences +=
          fmt::format("\n  {}: was {}, now {}", setting.name, text(was, setting.name), now.dump());
    }
  }
  if (!differences.empty()) {
    throw Error(
        fmt::format("the run in {} was started with other settings:{}", output, differences));
  }
}

std::string documents_checksum(const TokenDocuments& documents) {
  Checksum sum;
  for (int64_t i = 0; i < documents.size(); ++i) {
    const TokenDocument document = documents[i];
    const int64_t length = documents.length(i);
    sum.add(std::as_bytes(std::span(&length, 1)));
    sum.add(std::as_bytes(document.tokens));
    sum.add(std::as_bytes(document.loss));
  }
  return sum.hex();
}

}  // namespace flashloom
