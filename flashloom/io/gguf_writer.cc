#include "flashloom/io/gguf_writer.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "flashloom/core/check.h"
#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/io/gguf_quantize.h"
#include "flashloom/io/tensor_decoder.h"

namespace flashloom {
namespace {

constexpr std::string_view kOp = "GgufWriter";
constexpr uint32_t kVersion = 3;
constexpr int64_t kAlignment = 32;           // the format's default
constexpr int64_t kTileElements = 1 << 14;   // a task: Q4_K takes some 5 ms for them
constexpr int64_t kChunkElements = 1 << 22;  // encoded between two writes: 16 MB of f32

template <class T>
void append_raw(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void append_text(std::string& bytes, std::string_view text) {
  append_raw(bytes, uint64_t{text.size()});
  bytes.append(text);
}

int64_t aligned(int64_t offset) {
  return (offset + kAlignment - 1) / kAlignment * kAlignment;
}

GgmlTypeInfo type_of(const GgufEntry& entry) {
  const GgmlTypeInfo* type = find_ggml_type(static_cast<uint32_t>(entry.type));
  if (type == nullptr || !can_quantize(entry.type)) {
    throw InvalidArgument(kOp, entry.name, "a type that can be written",
                          type == nullptr ? "an unknown one" : type->name);
  }
  return *type;
}

// Bytes of the tensor as stored; checks its shape.
int64_t stored_bytes(const GgufEntry& entry, const GgmlTypeInfo& type) {
  check(entry.shape.size() == 1 || entry.shape.size() == 2, kOp, entry.name,
        "one or two dimensions", fmt::format("({})", fmt::join(entry.shape, ", ")));
  int64_t elements = 1;
  for (const int64_t size : entry.shape) {
    check(size > 0 && !__builtin_mul_overflow(elements, size, &elements), kOp, entry.name,
          "sizes from 1 whose product fits 63 bits",
          fmt::format("({})", fmt::join(entry.shape, ", ")));
  }
  check(entry.shape.back() % type.block_elements == 0, kOp, entry.name,
        fmt::format("rows of whole {} blocks of {}", type.name, type.block_elements),
        fmt::format("rows of {}", entry.shape.back()));
  const int64_t heads = entry.interleaved_heads;
  check(heads == 0 || entry.shape.front() % (2 * heads) == 0, kOp, entry.name,
        fmt::format("rows of {} heads of even size", heads),
        fmt::format("{} rows", entry.shape.front()));
  int64_t bytes = 0;
  check(!__builtin_mul_overflow(elements / type.block_elements, type.block_bytes, &bytes), kOp,
        entry.name, "fewer than 2^63 bytes", "more");
  return bytes;
}

}  // namespace

void GgufMetadata::begin(std::string_view key, GgufType type) {
  append_text(bytes_, key);
  append_raw(bytes_, static_cast<uint32_t>(type));
  ++count_;
}

void GgufMetadata::add(std::string_view key, uint32_t value) {
  begin(key, GgufType::u32);
  append_raw(bytes_, value);
}

void GgufMetadata::add(std::string_view key, float value) {
  begin(key, GgufType::f32);
  append_raw(bytes_, value);
}

void GgufMetadata::add(std::string_view key, std::string_view value) {
  begin(key, GgufType::string);
  append_text(bytes_, value);
}

void GgufMetadata::add_flag(std::string_view key, bool value) {
  begin(key, GgufType::boolean);
  append_raw(bytes_, uint8_t{value});
}

void GgufMetadata::add(std::string_view key, std::span<const std::string> values) {
  begin(key, GgufType::array);
  append_raw(bytes_, static_cast<uint32_t>(GgufType::string));
  append_raw(bytes_, uint64_t{values.size()});
  for (const std::string& value : values) {
    append_text(bytes_, value);
  }
}

void GgufMetadata::add(std::string_view key, std::span<const int32_t> values) {
  begin(key, GgufType::array);
  append_raw(bytes_, static_cast<uint32_t>(GgufType::i32));
  append_raw(bytes_, uint64_t{values.size()});
  bytes_.append(reinterpret_cast<const char*>(values.data()), values.size_bytes());
}

GgufWriter::GgufWriter(const std::string& path, const GgufMetadata& metadata,
                       std::vector<GgufEntry> entries)
    : file_(path) {
  std::string header = "GGUF";
  append_raw(header, kVersion);
  append_raw(header, uint64_t{entries.size()});
  append_raw(header, metadata.count());
  header += metadata.bytes();
  int64_t offset = 0;  // in the data
  for (GgufEntry& entry : entries) {
    const GgmlTypeInfo type = type_of(entry);
    const int64_t bytes = stored_bytes(entry, type);
    append_text(header, entry.name);
    append_raw(header, static_cast<uint32_t>(entry.shape.size()));
    for (auto size = entry.shape.rbegin(); size != entry.shape.rend(); ++size) {
      append_raw(header, static_cast<uint64_t>(*size));
    }
    append_raw(header, type.number);
    append_raw(header, static_cast<uint64_t>(offset));
    std::string name = entry.name;
    const bool fresh = slots_
                           .emplace(std::move(name),
                                    Slot{.entry = std::move(entry), .type = type, .offset = offset})
                           .second;
    check(fresh, kOp, "entries", "a name of its own for each tensor", "one twice");
    check(!__builtin_add_overflow(offset, bytes + kAlignment, &offset), kOp, "entries",
          "a file below 2^63 bytes", "more");
    offset = aligned(offset - kAlignment);
  }
  header.resize(static_cast<size_t>(aligned(static_cast<int64_t>(header.size()))));
  for (auto& [name, slot] : slots_) {
    slot.offset += static_cast<int64_t>(header.size());
  }
  // Files end aligned, as ggml's own do: readers map whole tensors.
  const int64_t end = static_cast<int64_t>(header.size()) + offset;
  file_.write(header);
  if (offset > 0) {
    constexpr std::byte kZero = {};
    file_.write_at(end - 1, {&kZero, 1});
  }
}

void GgufWriter::write(std::string_view name, const ConstTensorView& values) {
  const auto it = slots_.find(name);
  check(it != slots_.end(), kOp, name, "a tensor announced to the writer", "an unknown name");
  Slot& slot = it->second;
  check(!slot.written, kOp, name, "a tensor not written before", "a second one");
  const std::vector<int64_t>& shape = slot.entry.shape;
  check(std::equal(shape.begin(), shape.end(), values.shape.begin(),
                   values.shape.begin() + values.rank),
        kOp, name, fmt::format("({})", fmt::join(shape, ", ")), describe(values));
  check_dtype(kOp, name, values, {DType::f32});
  check_contiguous(kOp, name, values);
  check_cpu(kOp, name, values);

  // A vector of heads is interleaved element by element.
  const int64_t heads = slot.entry.interleaved_heads;
  const bool single = shape.size() == 1 && heads > 0;
  const int64_t columns = single ? 1 : shape.back();
  const int64_t rows = values.size() / columns;
  const int64_t row_bytes = columns / slot.type.block_elements * slot.type.block_bytes;
  const int64_t chunk_rows = std::clamp<int64_t>(kChunkElements / columns, 1, rows);
  const int64_t tile = std::max<int64_t>(1, kTileElements / columns);
  const float* source = values.as<float>();
  std::vector<std::byte> encoded(static_cast<size_t>(chunk_rows * row_bytes));
  // From here on f16 rounds to infinity.
  constexpr float kHalfLimit = 65520;
  const float limit =
      slot.entry.type == GgmlType::f16 ? kHalfLimit : std::numeric_limits<float>::infinity();
  std::atomic<bool> finite = true;
  for (int64_t first = 0; first < rows; first += chunk_rows) {
    const int64_t count = std::min(chunk_rows, rows - first);
    parallel_for(tile_count(count, tile), [&](int64_t index) {
      for (int64_t i = index * tile; i < std::min(count, (index + 1) * tile); ++i) {
        const float* row = source + half_split_row(first + i, rows, heads) * columns;
        if (!std::all_of(row, row + columns, [limit](float x) { return std::fabs(x) < limit; })) {
          finite = false;
          return;
        }
        gguf_quantize(slot.entry.type, {row, static_cast<size_t>(columns)},
                      {encoded.data() + i * row_bytes, static_cast<size_t>(row_bytes)});
      }
    });
    check(finite, kOp, name, fmt::format("numbers that {} can hold", slot.type.name),
          "a NaN, an infinity or a number beyond");
    file_.write_at(slot.offset + first * row_bytes,
                   {encoded.data(), static_cast<size_t>(count * row_bytes)});
  }
  slot.written = true;
}

void GgufWriter::finish() {
  for (const auto& [name, slot] : slots_) {
    check(slot.written, kOp, name, "every announced tensor to be written", "nothing");
  }
  file_.commit();
}

}  // namespace flashloom
