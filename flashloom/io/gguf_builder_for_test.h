#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "flashloom/io/gguf_value.h"

namespace flashloom {

/// Puts together the bytes of a GGUF file, right or wrong. For tests.
class GgufBuilder {
 public:
  uint32_t version = 3;
  uint64_t alignment = 32;

  template <class T>
  static std::string raw(T value) {
    return {reinterpret_cast<const char*>(&value), sizeof(value)};
  }

  static std::string text(std::string_view value) {
    return raw(uint64_t{value.size()}).append(value);
  }

  /// A pair whose value is given as bytes.
  GgufBuilder& add_raw(std::string_view key, GgufType type, std::string_view bytes) {
    metadata_ += text(key) + raw(static_cast<uint32_t>(type));
    metadata_ += bytes;
    ++metadata_count_;
    return *this;
  }

  GgufBuilder& add(std::string_view key, uint32_t value) {
    return add_raw(key, GgufType::u32, raw(value));
  }

  GgufBuilder& add(std::string_view key, float value) {
    return add_raw(key, GgufType::f32, raw(value));
  }

  GgufBuilder& add(std::string_view key, const char* value) {
    return add_raw(key, GgufType::string, text(value));
  }

  GgufBuilder& add_flag(std::string_view key, bool value) {
    return add_raw(key, GgufType::boolean, raw(uint8_t{value}));
  }

  GgufBuilder& add(std::string_view key, const std::vector<std::string>& values) {
    std::string bytes = raw(static_cast<uint32_t>(GgufType::string)) + raw(uint64_t{values.size()});
    for (const std::string& value : values) {
      bytes += text(value);
    }
    return add_raw(key, GgufType::array, bytes);
  }

  GgufBuilder& add(std::string_view key, const std::vector<int32_t>& values) {
    std::string bytes = raw(static_cast<uint32_t>(GgufType::i32)) + raw(uint64_t{values.size()});
    for (const int32_t value : values) {
      bytes += raw(value);
    }
    return add_raw(key, GgufType::array, bytes);
  }

  /// The entry alone; `sizes` in the file's order, fastest first.
  GgufBuilder& add_entry(std::string_view name, const std::vector<uint64_t>& sizes, uint32_t type,
                         uint64_t offset) {
    tensors_ += text(name) + raw(static_cast<uint32_t>(sizes.size()));
    for (const uint64_t size : sizes) {
      tensors_ += raw(size);
    }
    tensors_ += raw(type) + raw(offset);
    ++tensor_count_;
    return *this;
  }

  /// An entry and its data; `shape` slowest first.
  GgufBuilder& add_tensor(std::string_view name, const std::vector<int64_t>& shape, uint32_t type,
                          std::string_view data) {
    data_.resize((data_.size() + alignment - 1) / alignment * alignment);
    add_entry(name, {shape.rbegin(), shape.rend()}, type, data_.size());
    data_ += data;
    return *this;
  }

  GgufBuilder& add_tensor(std::string_view name, const std::vector<int64_t>& shape,
                          const std::vector<float>& values) {
    return add_tensor(name, shape, 0,
                      {reinterpret_cast<const char*>(values.data()), values.size() * 4});
  }

  GgufBuilder& add_data(std::string_view data) {
    data_ += data;
    return *this;
  }

  /// Everything before the data, unpadded.
  std::string header() const {
    return "GGUF" + raw(version) + raw(tensor_count_) + raw(metadata_count_) + metadata_ + tensors_;
  }

  std::string build() const {
    std::string bytes = header();
    bytes.resize((bytes.size() + alignment - 1) / alignment * alignment);
    return bytes + data_;
  }

 private:
  std::string metadata_;
  std::string tensors_;
  std::string data_;
  uint64_t metadata_count_ = 0;
  uint64_t tensor_count_ = 0;
};

}  // namespace flashloom
