#include "flashloom/io/safetensors_writer.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <system_error>
#include <utility>

#include "flashloom/core/check.h"
#include "flashloom/core/error.h"
#include "flashloom/io/element_conversion.h"
#include "flashloom/io/safetensors.h"
#include "flashloom/json/json.h"

namespace flashloom {
namespace {

constexpr std::string_view kOp = "SafetensorsWriter";
constexpr int64_t kHeaderAlignment = 8;
constexpr int64_t kChunk = 1 << 16;  // elements converted at a time

int64_t entry_bytes(const SafetensorsEntry& entry) {
  int64_t bytes = static_cast<int64_t>(dtype_bytes(entry.dtype));
  for (const int64_t size : entry.shape) {
    check(size >= 0 && !__builtin_mul_overflow(bytes, size, &bytes), kOp, entry.name,
          "sizes whose product fits 63 bits", fmt::format("({})", fmt::join(entry.shape, ", ")));
  }
  return bytes;
}

bool same_shape(const std::vector<int64_t>& shape, const ConstTensorView& view) {
  return std::equal(shape.begin(), shape.end(), view.shape.begin(), view.shape.begin() + view.rank);
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::string& path, std::vector<SafetensorsEntry> entries,
                                     const std::map<std::string, std::string>& metadata)
    : file_(path) {
  std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return dtype_bytes(a.dtype) > dtype_bytes(b.dtype);
  });
  Json header = Json::object();
  if (!metadata.empty()) {
    Json& stored = header["__metadata__"];
    for (const auto& [name, value] : metadata) {
      stored[name] = value;
    }
  }
  int64_t end = 0;
  for (SafetensorsEntry& entry : entries) {
    const int64_t begin = end;
    check(!__builtin_add_overflow(end, entry_bytes(entry), &end), kOp, entry.name,
          "a file below 2^63 bytes", "more");
    check(entry.name != "__metadata__" && !slots_.contains(entry.name), kOp, entry.name,
          "a name of its own", "a name that is taken");
    header.append(entry.name, {{"dtype", safetensors_dtype_name(entry.dtype)},
                               {"shape", entry.shape},
                               {"data_offsets", Json::array({begin, end})}});
    std::string name = entry.name;
    const int64_t size = (end - begin) / static_cast<int64_t>(dtype_bytes(entry.dtype));
    slots_.emplace(std::move(name), Slot{.entry = std::move(entry), .offset = begin, .size = size});
  }
  std::string text = header.dump();
  const int64_t padding = -static_cast<int64_t>(text.size()) & (kHeaderAlignment - 1);
  text.append(static_cast<size_t>(padding), ' ');
  const uint64_t length = text.size();
  file_.write(std::as_bytes(std::span(&length, 1)));
  file_.write(text);
  for (auto& [name, slot] : slots_) {
    slot.offset += static_cast<int64_t>(sizeof(length) + length);
  }
}

SafetensorsWriter::Slot& SafetensorsWriter::slot_of(std::string_view name) {
  const auto it = slots_.find(std::string(name));
  check(it != slots_.end(), kOp, name, "a tensor announced to the writer", "an unknown name");
  return it->second;
}

void SafetensorsWriter::write_part(std::string_view name, int64_t first,
                                   const ConstTensorView& values) {
  Slot& slot = slot_of(name);
  const int64_t count = values.size();
  check(first >= 0 && count <= slot.size - first && count <= slot.size - slot.written, kOp, name,
        fmt::format("a part of {} elements, each once", slot.size),
        fmt::format("{} from {} on, {} written before", count, first, slot.written));
  check_dtype(kOp, name, values, {slot.entry.dtype});
  check_contiguous(kOp, name, values);
  check_cpu(kOp, name, values);
  const auto width = static_cast<int64_t>(dtype_bytes(slot.entry.dtype));
  file_.write_at(slot.offset + first * width,
                 {static_cast<const std::byte*>(values.data), static_cast<size_t>(values.bytes())});
  slot.written += count;
}

void SafetensorsWriter::write(std::string_view name, const ConstTensorView& values) {
  Slot& slot = slot_of(name);
  check(!slot.whole && slot.written == 0, kOp, name, "a tensor not written before", "a second one");
  check(same_shape(slot.entry.shape, values), kOp, name,
        fmt::format("({})", fmt::join(slot.entry.shape, ", ")), describe(values));
  check_contiguous(kOp, name, values);
  check_cpu(kOp, name, values);

  const auto* source = static_cast<const std::byte*>(values.data);
  const int64_t count = values.size();
  const DType to = slot.entry.dtype;
  if (values.dtype == to) {
    file_.write_at(slot.offset, {source, static_cast<size_t>(values.bytes())});
  } else {
    check(
        is_convertible(values.dtype) && is_convertible(to) && to != DType::f64, kOp, name,
        fmt::format("{}, or a floating-point type to convert to f32, bf16 or f16", dtype_name(to)),
        dtype_name(values.dtype));
    std::vector<float> wide(static_cast<size_t>(std::min(kChunk, count)));
    std::vector<std::byte> narrow(wide.size() * dtype_bytes(to));
    for (int64_t first = 0; first < count; first += kChunk) {
      const int64_t chunk = std::min(kChunk, count - first);
      decode_to_f32(values.dtype, source + first * static_cast<int64_t>(dtype_bytes(values.dtype)),
                    chunk, wide.data());
      encode_from_f32(to, wide.data(), chunk, narrow.data());
      const auto width = static_cast<int64_t>(dtype_bytes(to));
      file_.write_at(slot.offset + first * width,
                     {narrow.data(), static_cast<size_t>(chunk * width)});
    }
  }
  slot.whole = true;
  slot.written = slot.size;
}

void SafetensorsWriter::finish() {
  for (const auto& [name, slot] : slots_) {
    check(
        slot.whole || (slot.size > 0 && slot.written == slot.size), kOp, name,
        "every announced tensor to be written",
        slot.written == 0 ? "nothing" : fmt::format("{} of {} elements", slot.written, slot.size));
  }
  file_.commit();
}

SafetensorsModelWriter::SafetensorsModelWriter(std::string directory,
                                               std::vector<SafetensorsEntry> entries,
                                               int64_t max_shard_bytes)
    : directory_(std::move(directory)) {
  std::vector<std::vector<SafetensorsEntry>> groups(1);
  int64_t bytes = 0;
  for (SafetensorsEntry& entry : entries) {
    const int64_t more = entry_bytes(entry);
    if (!groups.back().empty() && more > max_shard_bytes - bytes) {
      groups.emplace_back();
      bytes = 0;
    }
    bytes += more;
    total_bytes_ += more;
    shard_of_.emplace(entry.name, groups.size() - 1);
    groups.back().push_back(std::move(entry));
  }
  for (size_t i = 0; i < groups.size(); ++i) {
    files_.push_back(groups.size() == 1
                         ? "model.safetensors"
                         : fmt::format("model-{:05}-of-{:05}.safetensors", i + 1, groups.size()));
    shards_.emplace_back(directory_ + "/" + files_.back(), std::move(groups[i]));
  }
}

void SafetensorsModelWriter::write(std::string_view name, const ConstTensorView& values) {
  const auto it = shard_of_.find(name);
  check(it != shard_of_.end(), kOp, name, "a tensor announced to the writer", "an unknown name");
  shards_[it->second].write(name, values);
}

void SafetensorsModelWriter::finish() {
  for (SafetensorsWriter& shard : shards_) {
    shard.finish();
  }
  const std::string index = directory_ + "/model.safetensors.index.json";
  std::string stale = index;
  if (shards_.size() > 1) {
    Json root;
    root["metadata"] = {{"total_size", total_bytes_}};
    Json& map = root["weight_map"];
    for (const auto& [name, shard] : shard_of_) {
      map.append(name, files_[shard]);
    }
    write_file_atomically(index, root.dump(2) + "\n");
    stale = directory_ + "/model.safetensors";
  }
  // Readers prefer model.safetensors, or would find an index of shards that are not ours.
  std::error_code error;
  std::filesystem::remove(stale, error);
  if (error) {
    throw IoError(stale, "remove", error.message());
  }
}

}  // namespace flashloom
