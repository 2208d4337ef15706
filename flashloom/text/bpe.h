#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "flashloom/text/bpe_cache.h"

namespace flashloom {

/// What one call of encode needs besides the model; reused from call to call, never shared by two.
struct BpeScratch {
  BpeCache cache;
  std::vector<int32_t> symbols;
  std::vector<uint32_t> ranks;
  std::vector<uint32_t> next;
  std::vector<uint32_t> previous;
  std::vector<uint64_t> heap;

  /// Gives back what one very long word needed.
  void trim();
};

/// Byte-pair encoding of words given as raw bytes (Sennrich et al. 2016, over bytes as in GPT-2):
/// of all adjacent pairs the one with the best merge, the leftmost of equals, is joined until none
/// is left.
class Bpe {
 public:
  /// What a single byte starts as.
  struct ByteSymbols {
    enum Kind : uint8_t {
      kDropped,   ///< the vocabulary lacks it, and there is no unknown token
      kKnown,     ///< ids[0]
      kFallback,  ///< `<0x..>` tokens for the UTF-8 of its spelling, which has one or two bytes
      kUnknown,   ///< ids[0] is the unknown token
    };

    Kind kind = kDropped;
    uint8_t count = 0;
    std::array<int32_t, 2> ids{};
  };

  /// With `fuse_unknown`, a run of unknown bytes becomes one unknown token.
  Bpe(const std::array<ByteSymbols, 256>& bytes, bool fuse_unknown);

  /// Makes room for `count` merges.
  void reserve_merges(size_t count);
  /// Merges are added best first; of two for the same pair the later one counts, as in
  /// `tokenizers`.
  void add_merge(int32_t left, int32_t right, int32_t merged);
  /// A word that becomes `id` whatever the merges say (`ignore_merges`).
  void add_whole_word(std::string_view bytes, int32_t id);

  /// Appends the ids of the words of `text`; word i is [ends[i - 1], ends[i]), none is empty.
  /// Short words go through the cache.
  void encode(std::vector<int32_t>& ids, std::string_view text, std::span<const size_t> ends,
              BpeScratch& scratch) const;

 private:
  struct Merge {
    uint64_t pair = kNoPair;
    uint32_t rank = 0;
    int32_t merged = 0;
  };

  static constexpr uint64_t kNoPair = ~uint64_t{0};

  const Merge* find(int32_t left, int32_t right) const;
  size_t slot(uint64_t pair) const;
  uint32_t rank(int32_t left, int32_t right) const;
  void merge_word(std::string_view word, BpeScratch& scratch) const;
  void start_symbols(std::string_view word, std::vector<int32_t>& symbols) const;
  void merge_short(std::vector<int32_t>& symbols, BpeScratch& scratch) const;
  void merge_long(std::vector<int32_t>& symbols, BpeScratch& scratch) const;

  std::array<ByteSymbols, 256> bytes_;
  bool one_symbol_a_byte_ = true;
  bool fuse_unknown_;
  std::vector<Merge> merges_;  // open addressing, a power of two
  uint32_t merge_count_ = 0;
  std::unordered_map<std::string_view, int32_t> whole_words_;  // views of the tokenizer's arena
};

}  // namespace flashloom
