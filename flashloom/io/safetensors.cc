#include "flashloom/io/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "flashloom/core/error.h"
#include "flashloom/json/json.h"

namespace flashloom {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors is little endian");

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kMaxHeaderBytes = 100'000'000;  // the format's own limit
constexpr size_t kMaxDimensions = 64;              // a sane bound on what is printed and multiplied

struct TypeRow {
  std::string_view name;
  uint64_t bits;
  std::optional<DType> dtype;
};

constexpr TypeRow kTypes[] = {
    {"F64", 64, DType::f64},
    {"F32", 32, DType::f32},
    {"F16", 16, DType::f16},
    {"BF16", 16, DType::bf16},
    {"F8_E4M3", 8, DType::e4m3},
    {"I64", 64, DType::i64},
    {"U64", 64, DType::u64},
    {"I32", 32, DType::i32},
    {"I8", 8, DType::i8},
    {"U8", 8, DType::u8},
    {"U32", 32, {}},
    {"I16", 16, {}},
    {"U16", 16, {}},
    {"BOOL", 8, {}},
    {"C64", 64, {}},
    {"F8_E5M2", 8, {}},
    {"F8_E8M0", 8, {}},
    {"F6_E2M3", 6, {}},
    {"F6_E3M2", 6, {}},
    {"F4", 4, {}},
};

const TypeRow* find_type(std::string_view name) {
  for (const TypeRow& row : kTypes) {
    if (row.name == name) {
      return &row;
    }
  }
  return nullptr;
}

struct Located {
  SafetensorsTensor tensor;
  uint64_t begin;
  uint64_t end;
};

[[noreturn]] void fail(const std::string& file, const std::string& tensor, std::string_view what) {
  throw IoError(file, fmt::format("tensor {}", tensor), what);
}

uint64_t unsigned_of(const Json& value, const std::string& file, const std::string& tensor,
                     std::string_view field) {
  if (!value.is_unsigned()) {
    fail(file, tensor, fmt::format("{}: expected non-negative integers", field));
  }
  return value.unsigned_integer();
}

const Json& member(const Json& object, const char* name, const std::string& file,
                   const std::string& tensor) {
  const Json* found = object.find(name);
  if (found == nullptr) {
    fail(file, tensor, fmt::format("{} is missing", name));
  }
  return *found;
}

Located parse_tensor(const std::string& name, const Json& object, std::span<const std::byte> data,
                     const std::string& file) {
  if (!object.is_object()) {
    fail(file, name, "expected a JSON object");
  }
  Located located = {};
  located.tensor.name = name;

  const Json& dtype = member(object, "dtype", file, name);
  const TypeRow* type = dtype.is_string() ? find_type(dtype.string()) : nullptr;
  if (type == nullptr) {
    fail(file, name,
         fmt::format("unknown dtype {}", dtype.dump(-1, JsonText::ascii).substr(0, 60)));
  }
  located.tensor.dtype = type->name;

  const Json& shape = member(object, "shape", file, name);
  if (!shape.is_array() || shape.size() > kMaxDimensions) {
    fail(file, name, fmt::format("shape: expected a list of at most {} sizes", kMaxDimensions));
  }
  uint64_t bits = type->bits;
  for (const Json& size : shape.elements()) {
    const uint64_t value = unsigned_of(size, file, name, "shape");
    if (value > uint64_t{INT64_MAX} || __builtin_mul_overflow(bits, value, &bits)) {
      fail(file, name, "shape: the product of the sizes overflows");
    }
    located.tensor.shape.push_back(static_cast<int64_t>(value));
  }

  const Json& offsets = member(object, "data_offsets", file, name);
  if (!offsets.is_array() || offsets.size() != 2) {
    fail(file, name, "data_offsets: expected two integers");
  }
  located.begin = unsigned_of(offsets.elements()[0], file, name, "data_offsets");
  located.end = unsigned_of(offsets.elements()[1], file, name, "data_offsets");
  if (located.begin > located.end || located.end > data.size()) {
    fail(file, name,
         fmt::format("data_offsets [{}, {}] lie outside the {} bytes of data", located.begin,
                     located.end, data.size()));
  }
  const uint64_t bytes = located.end - located.begin;
  if (bits % 8 != 0 || bits / 8 != bytes) {
    fail(file, name,
         fmt::format("shape and dtype {} need {} bytes, data_offsets give {}", type->name,
                     (bits + 7) / 8, bytes));
  }
  located.tensor.bytes = data.subspan(located.begin, bytes);
  return located;
}

// The data is a row of tensors, each beginning where the one before ends.
void check_tiling(const std::vector<Located>& sorted, uint64_t data_bytes,
                  const std::string& file) {
  uint64_t end = 0;
  for (const Located& located : sorted) {
    if (located.begin != end) {
      fail(file, located.tensor.name,
           fmt::format(
               "begins at byte {} of the data, {} byte {}", located.begin,
               located.begin < end ? "overlapping a tensor that ends at" : "leaving a hole after",
               end));
    }
    end = located.end;
  }
  if (end != data_bytes) {
    throw IoError(
        file, "",
        fmt::format("the tensors take {} bytes of data, the file has {}", end, data_bytes));
  }
}

}  // namespace

std::optional<DType> safetensors_dtype(std::string_view name) {
  const TypeRow* row = find_type(name);
  return row == nullptr ? std::nullopt : row->dtype;
}

std::string_view safetensors_dtype_name(DType dtype) {
  for (const TypeRow& row : kTypes) {
    if (row.dtype == dtype) {
      return row.name;
    }
  }
  throw Unsupported("safetensors", fmt::format("dtype {}", dtype_name(dtype)));
}

SafetensorsFile::SafetensorsFile(std::string path) : file_(std::move(path)) {
  const std::span<const std::byte> bytes = file_.bytes();
  if (bytes.size() < kLengthBytes) {
    throw IoError(file_.path(), "byte 0",
                  fmt::format("expected 8 bytes of header length, the file has {}", bytes.size()));
  }
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, bytes.data(), kLengthBytes);
  if (header_bytes > kMaxHeaderBytes || header_bytes > bytes.size() - kLengthBytes) {
    throw IoError(file_.path(), "byte 0",
                  fmt::format("header length {} exceeds the file ({} bytes) or the limit of {}",
                              header_bytes, bytes.size(), kMaxHeaderBytes));
  }
  const Json header = parse_strict_json(file_.text().substr(kLengthBytes, header_bytes),
                                        file_.path() + " (header)");
  if (!header.is_object()) {
    throw IoError(file_.path(), "byte 8", "expected the header to be a JSON object");
  }
  const std::span<const std::byte> data = bytes.subspan(kLengthBytes + header_bytes);

  std::vector<Located> located;
  for (const auto& [name, value] : header.members()) {
    if (name != "__metadata__") {
      located.push_back(parse_tensor(name, value, data, file_.path()));
      continue;
    }
    if (!value.is_object()) {
      throw IoError(file_.path(), "__metadata__", "expected a JSON object");
    }
    for (const auto& [key, text] : value.members()) {
      if (!text.is_string()) {
        throw IoError(file_.path(), "__metadata__", fmt::format("{}: expected a string", key));
      }
      metadata_.emplace(key, text.string());
    }
  }
  std::sort(located.begin(), located.end(), [](const Located& a, const Located& b) {
    return std::pair(a.begin, a.end) < std::pair(b.begin, b.end);
  });
  check_tiling(located, data.size(), file_.path());

  tensors_.reserve(located.size());
  for (Located& one : located) {
    tensors_.push_back(std::move(one.tensor));
  }
  for (size_t i = 0; i < tensors_.size(); ++i) {
    by_name_.emplace(tensors_[i].name, i);
  }
}

const SafetensorsTensor* SafetensorsFile::find(std::string_view name) const {
  const auto it = by_name_.find(name);
  return it == by_name_.end() ? nullptr : &tensors_[it->second];
}

ConstTensorView SafetensorsFile::view(std::string_view name) const {
  const SafetensorsTensor* tensor = find(name);
  const std::string label(name);
  if (tensor == nullptr) {
    fail(path(), label, "missing");
  }
  const std::optional<DType> dtype = safetensors_dtype(tensor->dtype);
  if (!dtype) {
    fail(path(), label, fmt::format("dtype {} has no view", tensor->dtype));
  }
  if (tensor->shape.size() > kMaxRank) {
    fail(
        path(), label,
        fmt::format("has {} dimensions, at most {} are supported", tensor->shape.size(), kMaxRank));
  }
  if (reinterpret_cast<uintptr_t>(tensor->bytes.data()) % dtype_bytes(*dtype) != 0) {
    fail(path(), label, "its data is not aligned to its elements");
  }
  ConstTensorView view;
  view.data = tensor->bytes.data();
  view.dtype = *dtype;
  view.rank = static_cast<int>(tensor->shape.size());
  int64_t stride = 1;
  for (int i = view.rank - 1; i >= 0; --i) {
    view.shape[i] = tensor->shape[i];
    view.strides[i] = stride;
    stride *= std::max<int64_t>(1, tensor->shape[i]);
  }
  return view;
}

}  // namespace flashloom
