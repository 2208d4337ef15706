#include "flashloom/train/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <string_view>
#include <system_error>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/io/atomic_file.h"
#include "flashloom/io/checksum.h"
#include "flashloom/io/mapped_file.h"
#include "flashloom/io/safetensors.h"
#include "flashloom/io/safetensors_writer.h"
#include "flashloom/json/json.h"

namespace flashloom {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kFolder = "checkpoint-";
constexpr const char* kTensors = "/training_state.safetensors";
constexpr const char* kState = "/checkpoint.json";
constexpr size_t kKept = 2;

int64_t step_of(const fs::path& folder) {
  const std::string name = folder.filename().string();
  int64_t step = -1;
  if (name.starts_with(kFolder)) {
    const char* end = name.data() + name.size();
    const auto [rest, code] = std::from_chars(name.data() + kFolder.size(), end, step);
    step = code == std::errc() && rest == end ? step : -1;
  }
  return step;
}

// Newest first.
std::vector<fs::path> folders(const std::string& output) {
  std::vector<fs::path> found;
  for (const fs::directory_entry& entry : fs::directory_iterator(output)) {
    if (entry.is_directory() && step_of(entry.path()) >= 0) {
      found.push_back(entry.path());
    }
  }
  std::sort(found.begin(), found.end(),
            [](const fs::path& a, const fs::path& b) { return step_of(a) > step_of(b); });
  return found;
}

// A folder that is half gone must not look like a damaged checkpoint. What cannot be removed stays:
// a checkpoint too many harms nobody.
void remove_folder(const fs::path& folder) {
  std::error_code ignored;
  const fs::path removed = folder.string() + ".removed";
  fs::rename(folder, removed, ignored);
  fs::remove_all(removed, ignored);
}

bool is_unfinished(const fs::directory_entry& entry) {
  const std::string name = entry.path().filename().string();
  const bool folder = entry.is_directory() && name.starts_with(kFolder) &&
                      (name.ends_with(".partial") || name.ends_with(".removed"));
  return folder || (entry.is_regular_file() && name.find(".partial-") != std::string::npos);
}

Json to_json(const EvaluationResult& result) {
  return {{"loss", result.loss}, {"tokens", result.tokens}, {"all_tokens", result.all_tokens}};
}

EvaluationResult evaluation_from(const Json& json) {
  return {.loss = json.at("loss").number(),
          .tokens = json.at("tokens").integer(),
          .all_tokens = json.at("all_tokens").integer()};
}

Json to_json(const TrainingState& state) {
  Json json = {{"step", state.step},       {"epoch", state.data.epoch},
               {"bin", state.data.bin},    {"tokens", state.tokens},
               {"seconds", state.seconds}, {"best_step", state.best_step}};
  if (state.before) {
    json["before"] = to_json(*state.before);
  }
  if (state.best) {
    json["best"] = to_json(*state.best);
  }
  return json;
}

TrainingState state_from(const Json& json) {
  TrainingState state = {
      .step = json.at("step").integer(),
      .data = {.epoch = json.at("epoch").integer(), .bin = json.at("bin").integer()},
      .tokens = json.at("tokens").integer(),
      .seconds = json.at("seconds").number(),
      .best_step = json.at("best_step").integer()};
  if (const Json* before = json.find("before")) {
    state.before = evaluation_from(*before);
  }
  if (const Json* best = json.find("best")) {
    state.best = evaluation_from(*best);
  }
  return state;
}

std::string text_checksum(std::string_view text) {
  return checksum(std::as_bytes(std::span(text)));
}

// checkpoint.json: {"content": {state and files}, "xxh3": of the content's text}.
void write_record(const std::string& folder, const TrainingState& state) {
  Json content = to_json(state);
  std::vector<fs::path> files;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) {
      files.push_back(entry.path());
    }
  }
  std::sort(files.begin(), files.end());
  Json& sums = content["files"] = Json::object();
  for (const fs::path& file : files) {
    sums[file.lexically_relative(folder).string()] = file_checksum(file.string());
  }
  const Json record = {{"content", content}, {"xxh3", text_checksum(content.dump())}};
  write_file_atomically(folder + kState, record.dump(2) + "\n");
}

// Throws IoError or JsonError for a folder that is not whole.
TrainingState read_record(const std::string& folder) {
  const std::string path = folder + kState;
  const MappedFile file(path);
  const Json record = parse_strict_json(file.text(), path);
  const Json& content = record.at("content");
  if (record.at("xxh3").string() != text_checksum(content.dump())) {
    throw IoError(path, "", "differs from its checksum");
  }
  for (const auto& [name, sum] : content.at("files").members()) {
    const std::string member = fmt::format("{}/{}", folder, name);
    if (file_checksum(member) != sum.string()) {
      throw IoError(member, "", "differs from its checksum");
    }
  }
  return state_from(content);
}

int64_t whole_size(const StateTensor& tensor) {
  return tensor.is_part() ? tensor.size : tensor.value.size();
}

void read_tensors(const std::string& folder, std::span<const StateTensor> tensors,
                  StateParts* parts) {
  const SafetensorsFile file(folder + kTensors);
  if (file.tensors().size() != tensors.size()) {
    throw IoError(
        file.path(), "",
        fmt::format("expected {} tensors, found {}", tensors.size(), file.tensors().size()));
  }
  for (const StateTensor& tensor : tensors) {
    const ConstTensorView stored = file.view(tensor.name);
    if (stored.dtype != tensor.value.dtype || stored.size() != whole_size(tensor)) {
      throw IoError(file.path(), tensor.name,
                    fmt::format("expected {} of {}, found {}", whole_size(tensor),
                                dtype_name(tensor.value.dtype), describe(stored)));
    }
  }
  for (const StateTensor& tensor : tensors) {
    const ConstTensorView stored = file.view(tensor.name);
    if (parts != nullptr) {
      parts->hand_out(tensor, stored);
    } else {
      std::memcpy(tensor.value.data, stored.data, static_cast<size_t>(tensor.value.bytes()));
    }
  }
}

}  // namespace

CheckpointFolders::CheckpointFolders(std::string output) : output_(std::move(output)) {
  std::vector<fs::path> unfinished;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(output_)) {
    if (is_unfinished(entry)) {
      unfinished.push_back(entry.path());
    }
  }
  std::error_code ignored;
  for (const fs::path& path : unfinished) {
    fs::remove_all(path, ignored);
  }
}

std::string CheckpointFolders::write(
    const TrainingState& state, std::span<const StateTensor> tensors,
    const std::function<void(const std::string& folder)>& write_model, StateParts* parts) const {
  const std::string folder = fmt::format("{}/{}{}", output_, kFolder, state.step);
  const std::string partial = folder + ".partial";
  fs::remove_all(partial);
  make_directory(partial);

  // What a full disk leaves of a checkpoint would keep it full.
  struct Cleaner {
    const std::string& folder;

    ~Cleaner() {
      std::error_code ignored;
      fs::remove_all(folder, ignored);
    }
  } const cleaner{partial};

  write_model(partial);
  std::vector<SafetensorsEntry> entries;
  for (const StateTensor& tensor : tensors) {
    const TensorView& value = tensor.value;
    std::vector<int64_t> shape(value.shape.begin(), value.shape.begin() + value.rank);
    if (tensor.is_part()) {
      shape = {tensor.size};
    }
    entries.push_back({tensor.name, value.dtype, std::move(shape)});
  }
  SafetensorsWriter writer(partial + kTensors, std::move(entries));
  for (const StateTensor& tensor : tensors) {
    if (parts != nullptr && tensor.is_part()) {
      parts->collect(tensor, [&](int64_t first, const ConstTensorView& piece) {
        writer.write_part(tensor.name, first, piece);
      });
    } else {
      writer.write(tensor.name, tensor.value);
    }
  }
  writer.finish();
  write_record(partial, state);
  if (fs::exists(folder)) {
    remove_folder(folder);
  }
  rename_durably(partial, folder);
  const std::vector<fs::path> all = folders(output_);
  for (size_t i = kKept; i < all.size(); ++i) {
    remove_folder(all[i]);
  }
  return folder;
}

std::optional<TrainingState> CheckpointFolders::read_newest(
    std::span<const StateTensor> tensors,
    const std::function<void(const std::string& what)>& damaged, StateParts* parts) const {
  for (const fs::path& folder : folders(output_)) {
    std::string what;
    try {
      const TrainingState state = read_record(folder.string());
      read_tensors(folder.string(), tensors, parts);
      return state;
    } catch (const IoError& error) {
      what = error.what();
    } catch (const JsonError& error) {
      what = fmt::format("{}{}: {}", folder.string(), kState, error.what());
    }
    if (damaged) {
      damaged(what);
    }
  }
  return std::nullopt;
}

void CheckpointFolders::clear() const {
  for (const fs::path& folder : folders(output_)) {
    remove_folder(folder);
  }
}

}  // namespace flashloom
