#include "flashloom/text/bpe.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>

namespace flashloom {
namespace {

constexpr uint32_t kNoRank = std::numeric_limits<uint32_t>::max();
constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();

// Above this many symbols the heap's n log n beats the scan's n^2; both give the same ids.
constexpr size_t kLongWord = 48;

uint64_t pair_of(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

}  // namespace

Bpe::Bpe(const std::array<ByteSymbols, 256>& bytes, bool fuse_unknown)
    : bytes_(bytes), fuse_unknown_(fuse_unknown) {
  one_symbol_a_byte_ = std::all_of(bytes.begin(), bytes.end(), [](const ByteSymbols& symbols) {
    return symbols.kind == ByteSymbols::kKnown;
  });
  reserve_merges(0);
}

void Bpe::reserve_merges(size_t count) {
  size_t capacity = 16;
  while (capacity < 2 * count) {
    capacity *= 2;
  }
  std::vector<Merge> old(capacity);
  old.swap(merges_);
  for (const Merge& merge : old) {
    if (merge.pair != kNoPair) {
      merges_[slot(merge.pair)] = merge;
    }
  }
}

size_t Bpe::slot(uint64_t pair) const {
  const size_t mask = merges_.size() - 1;
  const uint64_t mixed = pair * 0x9E3779B97F4A7C15u;  // Fibonacci hashing
  size_t i = static_cast<size_t>(mixed ^ mixed >> 32) & mask;
  while (merges_[i].pair != pair && merges_[i].pair != kNoPair) {
    i = (i + 1) & mask;
  }
  return i;
}

void Bpe::add_merge(int32_t left, int32_t right, int32_t merged) {
  if (2 * (size_t{merge_count_} + 1) > merges_.size()) {
    reserve_merges(size_t{merge_count_} + 1);
  }
  const uint64_t pair = pair_of(left, right);
  merges_[slot(pair)] = {pair, merge_count_, merged};
  ++merge_count_;
}

void Bpe::add_whole_word(std::string_view bytes, int32_t id) {
  whole_words_.emplace(bytes, id);
}

const Bpe::Merge* Bpe::find(int32_t left, int32_t right) const {
  const uint64_t pair = pair_of(left, right);
  const Merge& merge = merges_[slot(pair)];
  return merge.pair == pair ? &merge : nullptr;
}

uint32_t Bpe::rank(int32_t left, int32_t right) const {
  const Merge* merge = find(left, right);
  return merge == nullptr ? kNoRank : merge->rank;
}

void Bpe::start_symbols(std::string_view word, std::vector<int32_t>& symbols) const {
  symbols.clear();
  if (one_symbol_a_byte_) {
    symbols.resize(word.size());
    std::transform(word.begin(), word.end(), symbols.begin(),
                   [this](char c) { return bytes_[static_cast<unsigned char>(c)].ids[0]; });
    return;
  }
  // `tokenizers` holds an unknown token back until a known character comes, and lets bytes that
  // fall back pass it.
  constexpr int32_t kNothing = -1;
  int32_t unknown = kNothing;
  const auto flush = [&] {
    if (unknown != kNothing) {
      symbols.push_back(unknown);
      unknown = kNothing;
    }
  };
  for (const char c : word) {
    const ByteSymbols& start = bytes_[static_cast<unsigned char>(c)];
    if (start.kind == ByteSymbols::kUnknown) {
      if (!fuse_unknown_) {
        flush();
      }
      unknown = start.ids[0];
    } else {
      if (start.kind == ByteSymbols::kKnown) {
        flush();
      }
      symbols.insert(symbols.end(), start.ids.begin(), start.ids.begin() + start.count);
    }
  }
  flush();
}

void Bpe::merge_short(std::vector<int32_t>& symbols, BpeScratch& scratch) const {
  std::vector<uint32_t>& ranks = scratch.ranks;  // ranks[i]: of the pair (i, i + 1)
  size_t size = symbols.size();
  ranks.resize(size);
  for (size_t i = 0; i + 1 < size; ++i) {
    ranks[i] = rank(symbols[i], symbols[i + 1]);
  }
  while (size > 1) {
    const auto best = std::min_element(ranks.begin(), ranks.begin() + static_cast<long>(size) - 1);
    if (*best == kNoRank) {
      break;
    }
    const auto i = static_cast<size_t>(best - ranks.begin());
    symbols[i] = find(symbols[i], symbols[i + 1])->merged;
    for (size_t j = i + 1; j + 1 < size; ++j) {
      symbols[j] = symbols[j + 1];
      ranks[j] = ranks[j + 1];
    }
    --size;
    if (i + 1 < size) {
      ranks[i] = rank(symbols[i], symbols[i + 1]);
    }
    if (i > 0) {
      ranks[i - 1] = rank(symbols[i - 1], symbols[i]);
    }
  }
  symbols.resize(size);
}

void Bpe::merge_long(std::vector<int32_t>& symbols, BpeScratch& scratch) const {
  const auto size = static_cast<uint32_t>(symbols.size());
  std::vector<uint32_t>& next = scratch.next;
  std::vector<uint32_t>& previous = scratch.previous;
  std::vector<uint32_t>& ranks = scratch.ranks;
  // Rank above, position below: the top is the best merge, leftmost of equals. An entry is stale
  // when its position has another rank by now.
  std::vector<uint64_t>& heap = scratch.heap;
  next.resize(size);
  previous.resize(size);
  ranks.assign(size, kNoRank);
  heap.clear();
  for (uint32_t i = 0; i < size; ++i) {
    next[i] = i + 1 < size ? i + 1 : kNone;
    previous[i] = i == 0 ? kNone : i - 1;
    if (i + 1 < size) {
      ranks[i] = rank(symbols[i], symbols[i + 1]);
      if (ranks[i] != kNoRank) {
        heap.push_back(uint64_t{ranks[i]} << 32 | i);
      }
    }
  }
  const std::greater<> smallest_first;
  std::make_heap(heap.begin(), heap.end(), smallest_first);
  const auto update = [&](uint32_t i) {
    ranks[i] = next[i] == kNone ? kNoRank : rank(symbols[i], symbols[next[i]]);
    if (ranks[i] != kNoRank) {
      heap.push_back(uint64_t{ranks[i]} << 32 | i);
      std::push_heap(heap.begin(), heap.end(), smallest_first);
    }
  };
  while (!heap.empty()) {
    const auto best_rank = static_cast<uint32_t>(heap.front() >> 32);
    const auto i = static_cast<uint32_t>(heap.front());
    std::pop_heap(heap.begin(), heap.end(), smallest_first);
    heap.pop_back();
    if (ranks[i] != best_rank) {
      continue;
    }
    const uint32_t right = next[i];
    symbols[i] = find(symbols[i], symbols[right])->merged;
    ranks[right] = kNoRank;
    next[i] = next[right];
    if (next[i] != kNone) {
      previous[next[i]] = i;
    }
    update(i);
    if (previous[i] != kNone) {
      update(previous[i]);
    }
  }
  uint32_t count = 0;
  for (uint32_t i = 0; i != kNone; i = next[i]) {
    symbols[count++] = symbols[i];
  }
  symbols.resize(count);
}

void Bpe::merge_word(std::string_view word, BpeScratch& scratch) const {
  std::vector<int32_t>& symbols = scratch.symbols;
  if (!whole_words_.empty()) {
    if (const auto whole = whole_words_.find(word); whole != whole_words_.end()) {
      symbols.assign(1, whole->second);
      return;
    }
  }
  start_symbols(word, symbols);
  if (symbols.size() > kLongWord) {
    merge_long(symbols, scratch);
  } else if (symbols.size() > 1) {
    merge_short(symbols, scratch);
  }
}

void Bpe::encode(std::vector<int32_t>& ids, std::string_view text, std::span<const size_t> ends,
                 BpeScratch& scratch) const {
  // Room for kMaxIds a word, so that a hit is one fixed-size copy.
  constexpr size_t kRoom = BpeCache::kMaxIds;
  size_t size = ids.size();
  ids.resize(size + kRoom * ends.size());
  size_t begin = 0;
  for (size_t i = 0; i < ends.size(); ++i) {
    const std::string_view word(text.data() + begin, ends[i] - begin);
    begin = ends[i];
    const bool cacheable = word.size() <= BpeCache::kMaxWord;
    BpeCache::Key key{};
    if (cacheable) {
      key = BpeCache::make_key(word);
      if (const BpeCache::Line* line = scratch.cache.find(key)) {
        std::memcpy(ids.data() + size, line->ids, sizeof line->ids);
        size += line->count;
        continue;
      }
    }
    merge_word(word, scratch);
    const std::vector<int32_t>& symbols = scratch.symbols;
    if (cacheable && symbols.size() <= BpeCache::kMaxIds) {
      scratch.cache.insert(key, symbols.data(), symbols.size());
    } else {
      ids.resize(size + symbols.size() + kRoom * (ends.size() - i - 1));
    }
    std::copy(symbols.begin(), symbols.end(), ids.begin() + static_cast<std::ptrdiff_t>(size));
    size += symbols.size();
  }
  ids.resize(size);
}

void BpeScratch::trim() {
  constexpr size_t kKeep = 1 << 16;
  const auto trim_one = [](auto& vector) {
    if (vector.capacity() > kKeep) {
      vector.clear();
      vector.shrink_to_fit();
    }
  };
  trim_one(symbols);
  trim_one(ranks);
  trim_one(next);
  trim_one(previous);
  trim_one(heap);
}

}  // namespace flashloom
