#include "flashloom/io/safetensors_model.h"

#include <fmt/format.h>

#include <filesystem>
#include <map>
#include <set>
#include <string_view>
#include <system_error>

#include "flashloom/core/error.h"
#include "flashloom/json/json.h"

namespace flashloom {
namespace {

bool exists(const std::string& path) {
  std::error_code ignored;
  return std::filesystem::exists(path, ignored);
}

// An index must not lead out of its directory.
bool is_plain_name(std::string_view name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\0", 2)) == std::string_view::npos;
}

}  // namespace

SafetensorsModel::SafetensorsModel(const std::string& directory) {
  const std::string single = directory + "/model.safetensors";
  const std::string index = directory + "/model.safetensors.index.json";
  if (exists(single)) {  // as transformers does, even if there is an index too
    files_.emplace_back(single);
    for (const SafetensorsTensor& tensor : files_.back().tensors()) {
      tensors_.push_back(&tensor);
    }
    return;
  }
  if (!exists(index)) {
    throw IoError(directory, "", "has neither model.safetensors nor model.safetensors.index.json");
  }
  const MappedFile index_file(index);
  const Json root = parse_strict_json(index_file.text(), index);
  const Json* map = root.find("weight_map");
  if (map == nullptr || !map->is_object()) {
    throw IoError(index, "weight_map", "expected an object of tensor names and file names");
  }
  std::map<std::string, std::vector<std::string>> names_of;  // shard → tensors
  for (const auto& [name, shard] : map->members()) {
    if (!shard.is_string()) {
      throw IoError(index, fmt::format("tensor {}", name), "expected a file name");
    }
    const std::string& file = shard.string();
    if (!is_plain_name(file)) {
      throw IoError(index, fmt::format("tensor {}", name),
                    "expected the name of a file in the same directory");
    }
    names_of[file].push_back(name);
  }
  files_.reserve(names_of.size());  // tensors_ points into the files
  for (const auto& [file, names] : names_of) {
    const SafetensorsFile& shard = files_.emplace_back(fmt::format("{}/{}", directory, file));
    const std::set<std::string_view> wanted(names.begin(), names.end());
    for (const SafetensorsTensor& tensor : shard.tensors()) {
      if (wanted.count(tensor.name) > 0) {
        tensors_.push_back(&tensor);
      }
    }
    for (const std::string& name : names) {
      if (shard.find(name) == nullptr) {
        throw IoError(shard.path(), fmt::format("tensor {}", name),
                      "missing, though the index says it is here");
      }
    }
  }
}

}  // namespace flashloom
