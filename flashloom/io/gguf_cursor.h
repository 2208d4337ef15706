#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "flashloom/io/gguf_value.h"

namespace flashloom {

/// Reads forward through a GGUF file; every length is checked against what is left before it is
/// used. Errors are IoError with the byte. `what` names the thing that is read.
class GgufCursor {
 public:
  /// Borrows both.
  GgufCursor(std::span<const std::byte> bytes, const std::string& file)
      : bytes_(bytes), file_(file) {}

  size_t position() const { return position_; }

  size_t left() const { return bytes_.size() - position_; }

  std::span<const std::byte> take(uint64_t count, std::string_view what);

  template <class T>
  T read(std::string_view what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }

  /// A count of things that take at least `least` bytes each.
  size_t read_count(uint64_t least, std::string_view what);

  /// A length and that many bytes of UTF-8.
  std::string_view read_text(std::string_view what);

  /// A type and a value of it.
  GgufValue read_value();

 private:
  [[noreturn]] void fail(std::string_view what) const;
  GgufType read_type();
  GgufArray read_array(int depth);

  std::span<const std::byte> bytes_;
  const std::string& file_;
  size_t position_ = 0;
};

}  // namespace flashloom
