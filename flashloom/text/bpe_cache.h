#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <vector>

namespace flashloom {

/// Words seen lately and their ids: sets of two lines, the older one is replaced, so the memory is
/// fixed whatever the text. A line of the machine's cache holds a word of up to 15 bytes with up to
/// 11 ids. (With 3 ids, in 32 bytes, English under a vocabulary of 49,152 is 5 to 9 % faster, but
/// text of which the vocabulary knows little, 1.5 bytes an id, half as fast.)
class BpeCache {
 public:
  static constexpr size_t kMaxWord = 15;
  static constexpr size_t kMaxIds = 11;

  /// A word with its hash, padded with zeros; the last byte holds the length.
  struct Key {
    uint64_t low;
    uint64_t high;
    bool operator==(const Key&) const = default;
  };

  struct alignas(64) Line {
    Key key{};  // an empty line has length 0, which no word has
    uint32_t count = 0;
    int32_t ids[kMaxIds] = {};
  };

  BpeCache() : lines_(2 * kSets) {}

  /// `word` has 1 to kMaxWord bytes.
  static Key make_key(std::string_view word) {
    const size_t size = word.size();
    const char* data = word.data();
    Key key{};
    if (size >= 8) {
      std::memcpy(&key.low, data, 8);
      // The last 8 bytes, shifted so that only those behind the first 8 stay.
      std::memcpy(&key.high, data + size - 8, 8);
      key.high = size == 8 ? 0 : key.high >> (8 * (16 - size));
    } else if (size >= 4) {
      uint32_t first = 0;
      uint32_t last = 0;
      std::memcpy(&first, data, 4);
      std::memcpy(&last, data + size - 4, 4);
      key.low = first | uint64_t{last} << (8 * (size - 4));
    } else {
      const auto byte = [data](size_t i) { return uint64_t{static_cast<unsigned char>(data[i])}; };
      key.low = byte(0) | byte(size / 2) << (8 * (size / 2)) | byte(size - 1) << (8 * (size - 1));
    }
    key.high |= uint64_t{size} << 56;
    return key;
  }

  /// The line of `key`, or null.
  const Line* find(const Key& key) const {
    const Line* set = &lines_[2 * set_of(key)];
    if (set[0].key == key) {
      return &set[0];
    }
    return set[1].key == key ? &set[1] : nullptr;
  }

  void insert(const Key& key, const int32_t* ids, size_t count) {
    Line* set = &lines_[2 * set_of(key)];
    set[1] = set[0];
    set[0].key = key;
    set[0].count = static_cast<uint32_t>(count);
    for (size_t i = 0; i < kMaxIds; ++i) {
      set[0].ids[i] = i < count ? ids[i] : 0;
    }
  }

 private:
  static constexpr size_t kSets = size_t{1} << 14;  // 2 MB for each call that runs at once

  static size_t set_of(const Key& key) {
    // Multiplicative hashing; odd constants with well-mixed high bits (from the golden ratio and
    // from Steele and Vigna 2021).
    const uint64_t mixed = key.low * 0x9E3779B97F4A7C15u ^ key.high * 0xD1342543DE82EF95u;
    return static_cast<size_t>((mixed ^ mixed >> 29) * 0x9E3779B97F4A7C15u >> 50);
  }

  std::vector<Line> lines_;
};

}  // namespace flashloom
