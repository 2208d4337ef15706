#include "flashloom/io/gguf.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <utility>

#include "flashloom/core/error.h"
#include "flashloom/io/gguf_cursor.h"

namespace flashloom {
namespace {

static_assert(std::endian::native == std::endian::little, "GGUF is little endian");

constexpr std::string_view kMagic = "GGUF";
constexpr uint32_t kMaxDimensions = 4;  // ggml's own limit
constexpr int64_t kDefaultAlignment = 32;
constexpr int64_t kMaxAlignment = 1 << 16;

struct Located {
  GgufTensor tensor;
  uint64_t offset = 0;  // in the data
  uint64_t bytes = 0;
};

Located read_tensor(GgufCursor& cursor, const std::string& file) {
  Located located;
  located.tensor.name = cursor.read_text("the name of a tensor");
  const std::string place = fmt::format("tensor {}", located.tensor.name);
  const auto dimensions = cursor.read<uint32_t>("the number of dimensions");
  if (dimensions < 1 || dimensions > kMaxDimensions) {
    throw IoError(file, place,
                  fmt::format("expected 1 to {} dimensions, got {}", kMaxDimensions, dimensions));
  }
  uint64_t elements = 1;
  for (uint32_t i = 0; i < dimensions; ++i) {
    const auto size = cursor.read<uint64_t>("a dimension");
    if (size < 1 || size > uint64_t{INT64_MAX} ||
        __builtin_mul_overflow(elements, size, &elements)) {
      throw IoError(file, place,
                    fmt::format("dimension {} is {}: not a size that can be", i, size));
    }
    located.tensor.shape.insert(located.tensor.shape.begin(), static_cast<int64_t>(size));
  }
  const auto number = cursor.read<uint32_t>("the type of a tensor");
  const GgmlTypeInfo* type = find_ggml_type(number);
  if (type == nullptr) {
    throw IoError(
        file, place,
        fmt::format("unknown type {}; those supported are {}", number, decodable_ggml_types()));
  }
  located.tensor.type = *type;
  const int64_t row = located.tensor.shape.back();
  if (row % type->block_elements != 0) {
    throw IoError(file, place,
                  fmt::format("rows of {} are not whole {} blocks of {}", row, type->name,
                              type->block_elements));
  }
  if (__builtin_mul_overflow(elements / static_cast<uint64_t>(type->block_elements),
                             static_cast<uint64_t>(type->block_bytes), &located.bytes)) {
    throw IoError(file, place, "its size in bytes overflows");
  }
  located.offset = cursor.read<uint64_t>("the offset of a tensor");
  return located;
}

// Gives each tensor its bytes; the tensors must lie in the data, aligned, apart from each other.
void locate_data(std::vector<Located>& tensors, std::span<const std::byte> data, uint64_t alignment,
                 const std::string& file) {
  std::vector<const Located*> sorted;
  for (Located& located : tensors) {
    const std::string place = fmt::format("tensor {}", located.tensor.name);
    if (located.offset % alignment != 0) {
      throw IoError(file, place,
                    fmt::format("offset {} is not a multiple of the alignment {}", located.offset,
                                alignment));
    }
    if (located.offset > data.size() || located.bytes > data.size() - located.offset) {
      throw IoError(file, place,
                    fmt::format("its {} bytes at offset {} lie beyond the {} bytes of data (is the "
                                "file truncated?)",
                                located.bytes, located.offset, data.size()));
    }
    located.tensor.bytes = data.subspan(located.offset, located.bytes);
    sorted.push_back(&located);
  }
  std::sort(sorted.begin(), sorted.end(),
            [](const Located* a, const Located* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < sorted.size(); ++i) {
    if (sorted[i]->offset < sorted[i - 1]->offset + sorted[i - 1]->bytes) {
      throw IoError(file, fmt::format("tensor {}", sorted[i]->tensor.name),
                    fmt::format("its data overlaps that of {}", sorted[i - 1]->tensor.name));
    }
  }
}

}  // namespace

bool GgufFile::has_magic(const MappedFile& file) {
  return file.text().starts_with(kMagic);
}

GgufFile::GgufFile(std::string path) : file_(std::move(path)) {
  const std::string& name = file_.path();
  if (!has_magic(file_)) {
    throw IoError(name, "byte 0", "expected a GGUF file");
  }
  GgufCursor cursor(file_.bytes(), name);
  cursor.take(kMagic.size(), "the magic");
  const auto version = cursor.read<uint32_t>("the version");
  if (version != 2 && version != 3) {
    throw IoError(name, "byte 4",
                  version != 0 && version % 65536 == 0
                      ? std::string("big-endian GGUF files are not supported")
                      : fmt::format("expected GGUF version 2 or 3, got {}", version));
  }
  // At least: a name (8), dimensions (4), one size (8), type (4), offset (8); a key (8), its type
  // (4), one byte.
  const size_t tensor_count = cursor.read_count(32, "the number of tensors");
  const size_t metadata_count = cursor.read_count(13, "the number of metadata values");

  for (size_t i = 0; i < metadata_count; ++i) {
    std::string key(cursor.read_text("a metadata key"));
    metadata_.emplace_back(std::move(key), cursor.read_value());
  }
  for (size_t i = 0; i < metadata_.size(); ++i) {
    if (!metadata_by_key_.emplace(metadata_[i].first, i).second) {
      throw IoError(name, metadata_[i].first, "metadata key given twice");
    }
  }
  const int64_t alignment = integer("general.alignment").value_or(kDefaultAlignment);
  if (alignment < 1 || alignment > kMaxAlignment || !std::has_single_bit(uint64_t(alignment))) {
    throw IoError(
        name, "general.alignment",
        fmt::format("expected a power of two up to {}, got {}", kMaxAlignment, alignment));
  }

  std::vector<Located> located;
  located.reserve(tensor_count);  // as many as the file has bytes for
  for (size_t i = 0; i < tensor_count; ++i) {
    located.push_back(read_tensor(cursor, name));
  }
  const size_t padding = -cursor.position() & static_cast<size_t>(alignment - 1);
  const std::span<const std::byte> data =
      file_.bytes().subspan(cursor.position() + std::min(padding, cursor.left()));
  locate_data(located, data, static_cast<uint64_t>(alignment), name);
  for (Located& one : located) {
    tensors_.push_back(std::move(one.tensor));
  }
  for (size_t i = 0; i < tensors_.size(); ++i) {
    if (!tensor_by_name_.emplace(tensors_[i].name, i).second) {
      throw IoError(name, fmt::format("tensor {}", tensors_[i].name), "name given twice");
    }
  }
}

const GgufValue* GgufFile::find(std::string_view key) const {
  const auto it = metadata_by_key_.find(key);
  return it == metadata_by_key_.end() ? nullptr : &metadata_[it->second].second;
}

const GgufTensor* GgufFile::find_tensor(std::string_view name) const {
  const auto it = tensor_by_name_.find(name);
  return it == tensor_by_name_.end() ? nullptr : &tensors_[it->second];
}

void GgufFile::wrong_type(std::string_view key, std::string_view expected) const {
  throw IoError(path(), key,
                fmt::format("expected {}, got {}", expected, gguf_type_name(find(key)->type)));
}

std::optional<int64_t> GgufFile::integer(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) {
    return std::nullopt;
  }
  if (const auto* number = std::get_if<int64_t>(&value->value)) {
    return *number;
  }
  const auto* number = std::get_if<uint64_t>(&value->value);
  if (number == nullptr || *number > uint64_t{INT64_MAX}) {
    wrong_type(key, "an integer");
  }
  return static_cast<int64_t>(*number);
}

std::optional<double> GgufFile::number(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) {
    return std::nullopt;
  }
  if (const auto* wide = std::get_if<double>(&value->value)) {
    return *wide;
  }
  const auto* narrow = std::get_if<float>(&value->value);
  if (narrow == nullptr) {
    return integer(key);
  }
  const std::string decimal = fmt::format("{}", *narrow);
  double parsed = *narrow;
  std::from_chars(decimal.data(), decimal.data() + decimal.size(), parsed);
  return parsed;
}

std::optional<bool> GgufFile::boolean(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) {
    return std::nullopt;
  }
  const auto* flag = std::get_if<bool>(&value->value);
  if (flag == nullptr) {
    wrong_type(key, "a boolean");
  }
  return *flag;
}

std::optional<std::string_view> GgufFile::text(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) {
    return std::nullopt;
  }
  const auto* text = std::get_if<std::string_view>(&value->value);
  if (text == nullptr) {
    wrong_type(key, "a string");
  }
  return *text;
}

const GgufArray* GgufFile::array(std::string_view key) const {
  const GgufValue* value = find(key);
  if (value == nullptr) {
    return nullptr;
  }
  const auto* array = std::get_if<GgufArray>(&value->value);
  if (array == nullptr) {
    wrong_type(key, "an array");
  }
  return array;
}

}  // namespace flashloom
