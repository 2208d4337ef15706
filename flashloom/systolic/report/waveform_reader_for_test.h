#pragma once

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "flashloom/systolic/report/waveform_writer.h"

namespace flashloom::systolic {

/// A file in memory.
class StringSink final : public ByteSink {
 public:
  void append(std::string_view bytes) override { text += bytes; }

  void overwrite(int64_t offset, std::string_view bytes) override {
    text.replace(static_cast<size_t>(offset), bytes.size(), bytes);
  }

  std::string text;
};

struct ReadSignal {
  std::string name;  // "scope.name" in a scope below the machine's
  int width = 0;
  std::vector<std::pair<int64_t, uint64_t>> changes = {};
  bool operator==(const ReadSignal&) const = default;
};

/// What a waveform's file says, either format.
struct ReadWaveform {
  std::vector<ReadSignal> signals;
  int64_t end = 0;
  int blocks = 0;  // of an FST
};

inline void expect(bool holds, const std::string& what) {
  if (!holds) {
    throw std::runtime_error(what);
  }
}

inline std::string name_in(const std::vector<std::string>& scopes, const std::string& name) {
  expect(!scopes.empty() && scopes.size() <= 2 && scopes[0] == "machine", "scope of " + name);
  return scopes.size() == 1 ? name : scopes[1] + "." + name;
}

inline ReadWaveform read_vcd_for_test(std::string_view text) {
  ReadWaveform read;
  std::map<std::string, size_t, std::less<>> signal_of;
  std::vector<std::string> scopes;
  int64_t time = -1;
  while (!text.empty()) {
    const std::string line(text.substr(0, text.find('\n')));
    text.remove_prefix(line.size() + 1);
    std::vector<std::string> words;
    for (size_t at = 0; at < line.size(); at = line.find(' ', at) + 1) {
      words.push_back(line.substr(at, line.find(' ', at) - at));
      if (line.find(' ', at) == std::string::npos) {
        break;
      }
    }
    if (words[0] == "$var") {
      signal_of[words[3]] = read.signals.size();
      read.signals.push_back({name_in(scopes, words[4]), std::stoi(words[2])});
    } else if (words[0] == "$scope") {
      scopes.push_back(words[2]);
    } else if (words[0] == "$upscope") {
      scopes.pop_back();
    } else if (line[0] == '#') {
      expect(std::stoll(line.substr(1)) > time, "time grows");
      time = std::stoll(line.substr(1));
    } else if (line[0] == 'b') {
      read.signals.at(signal_of.at(words[1]))
          .changes.emplace_back(time, std::stoull(words[0].substr(1), nullptr, 2));
    } else if (line[0] != '$') {
      const std::string name = line.substr(1);
      read.signals.at(signal_of.at(name)).changes.emplace_back(time, line[0] - '0');
    }
  }
  read.end = time;
  return read;
}

/// Walks the bytes of an FST; runs off no end.
class FstCursor {
 public:
  explicit FstCursor(std::string_view bytes) : rest_(bytes) {}

  bool empty() const { return rest_.empty(); }

  size_t size() const { return rest_.size(); }

  std::string_view take(size_t count) {
    expect(count <= rest_.size(), "bytes enough");
    const std::string_view taken = rest_.substr(0, count);
    rest_.remove_prefix(count);
    return taken;
  }

  std::string_view take_last(size_t count) {
    expect(count <= rest_.size(), "bytes enough");
    const std::string_view taken = rest_.substr(rest_.size() - count);
    rest_.remove_suffix(count);
    return taken;
  }

  uint64_t byte() { return static_cast<unsigned char>(take(1)[0]); }

  uint64_t fixed(size_t bytes = 8) { return fixed_of(take(bytes)); }

  uint64_t last_fixed() { return fixed_of(take_last(8)); }

  uint64_t varint() {
    const uint64_t low = byte();
    return low < 128 ? low : low - 128 + 128 * varint();
  }

  std::string name() {
    const std::string text(take(rest_.find('\0')));
    take(1);
    return text;
  }

 private:
  static uint64_t fixed_of(std::string_view bytes) {
    uint64_t value = 0;
    for (const char byte : bytes) {
      value = 256 * value + static_cast<unsigned char>(byte);
    }
    return value;
  }

  std::string_view rest_;
};

/// Reads what the format allows and FstWriter uses (no compression, no second names), and checks
/// that blocks join and that counts and lengths agree.
class FstReaderForTest {
 public:
  explicit FstReaderForTest(std::string_view bytes) {
    std::map<int, FstCursor> single;  // header, geometry, hierarchy
    std::vector<FstCursor> changes;
    for (FstCursor file(bytes); !file.empty();) {
      const int type = static_cast<int>(file.byte());
      const uint64_t length = file.fixed();
      const FstCursor content(file.take(length - 8));
      if (type == 1) {
        changes.push_back(content);
      } else {
        expect(single.emplace(type, content).second, "one block of each other type");
      }
    }
    read_hierarchy(single.at(6));
    read_geometry(single.at(3));
    values_.resize(read.signals.size());
    for (const FstCursor& block : changes) {
      read_changes(block);
    }
    read_header(single.at(0));
  }

  ReadWaveform read;

 private:
  void read_header(FstCursor header) const {
    expect(header.size() == 321, "the header's size");
    expect(header.fixed() == 0, "begin");
    expect(header.fixed() == static_cast<uint64_t>(read.end), "end");
    expect(header.take(8) == "\x69\x57\x14\x8b\x0a\xbf\x05\x40", "e, its lowest byte first");
    header.fixed();
    expect(header.fixed() == scopes_, "scopes");
    expect(header.fixed() == read.signals.size(), "names");
    expect(header.fixed() == read.signals.size(), "signals");
    expect(header.fixed() == static_cast<uint64_t>(read.blocks), "blocks");
    expect(header.byte() == 256 - 9, "nanoseconds");
  }

  void read_hierarchy(FstCursor packed) {
    const uint64_t size = packed.fixed();
    uint64_t run = packed.byte() / 16;
    for (uint64_t more = run == 15 ? 255 : 0; more == 255; run += more) {
      more = packed.byte();
    }
    expect(run == size && packed.size() == size, "one run of literals");
    std::vector<std::string> scopes;
    while (!packed.empty()) {
      const uint64_t tag = packed.byte();
      if (tag == 254) {
        expect(packed.byte() == 0, "a module");
        scopes.push_back(packed.name());
        expect(packed.name().empty(), "no name of a component");
        ++scopes_;
      } else if (tag == 255) {
        scopes.pop_back();
      } else {
        expect(tag == 16 && packed.byte() == 0, "a wire");
        ReadSignal signal{name_in(scopes, packed.name())};
        signal.width = static_cast<int>(packed.varint());
        expect(packed.varint() == 0, "no second name");
        read.signals.push_back(signal);
      }
    }
    expect(scopes.empty(), "the machine's end");
  }

  void read_geometry(FstCursor geometry) const {
    const uint64_t size = geometry.fixed();
    expect(geometry.fixed() == read.signals.size() && geometry.size() == size, "sizes");
    for (const ReadSignal& signal : read.signals) {
      expect(geometry.varint() == static_cast<uint64_t>(signal.width), "width of " + signal.name);
    }
    expect(geometry.empty(), "no more widths");
  }

  void read_changes(FstCursor block) {
    expect(block.fixed() == static_cast<uint64_t>(read.end), "begin is the last block's end");
    const uint64_t end = block.fixed();
    const uint64_t memory = block.fixed();
    const uint64_t bits = block.varint();
    expect(block.varint() == bits && block.varint() == read.signals.size(), "values at begin");
    for (size_t i = 0; i < read.signals.size(); ++i) {
      const std::string value(block.take(static_cast<size_t>(read.signals[i].width)));
      expect(std::stoull(value, nullptr, 2) == values_[i], "value at begin");
    }
    expect(block.varint() == read.signals.size(), "signals");

    // From behind: ticks, then places of chains.
    const uint64_t tick_count = block.last_fixed();
    const uint64_t tick_bytes = block.last_fixed();
    expect(block.last_fixed() == tick_bytes, "ticks are not compressed");
    FstCursor tick_list(block.take_last(tick_bytes));
    std::vector<int64_t> ticks;
    int64_t time = 0;
    for (uint64_t i = 0; i < tick_count; ++i) {
      time += static_cast<int64_t>(tick_list.varint());
      ticks.push_back(time);
    }
    expect(tick_list.empty() && static_cast<uint64_t>(ticks.back()) == end, "end is the last tick");
    FstCursor place_list(block.take_last(block.last_fixed()));
    std::vector<std::pair<size_t, size_t>> places;  // of a signal's chain
    size_t place = 0;
    size_t signal = 0;
    while (!place_list.empty()) {
      const uint64_t code = place_list.varint();
      if (code % 2 == 1) {
        place += code / 2;
        places.emplace_back(signal++, place);
      } else {
        signal += code / 2;
      }
    }
    expect(signal == read.signals.size(), "a place of every signal");
    const std::string_view chains = block.take(block.size());
    uint64_t bytes = 0;
    for (size_t i = 0; i < places.size(); ++i) {
      const size_t next = i + 1 < places.size() ? places[i + 1].second : chains.size();
      FstCursor chain(chains.substr(places[i].second, next - places[i].second));
      expect(chain.varint() == 0, "a chain is not compressed");
      bytes += chain.size();
      read_chain(chain, ticks, places[i].first);
    }
    expect(bytes == memory, "memory for all chains");
    read.end = static_cast<int64_t>(end);
    ++read.blocks;
  }

  void read_chain(FstCursor chain, const std::vector<int64_t>& ticks, size_t number) {
    ReadSignal& signal = read.signals[number];
    for (size_t tick = 0; !chain.empty();) {
      const uint64_t code = chain.varint();
      if (signal.width == 1) {
        expect(code % 2 == 0, "a bit of two values");
        tick += code / 4;
        values_[number] = code / 2 % 2;
      } else {
        expect(code % 2 == 0, "bits of two values");
        tick += code / 2;
        const size_t bytes = (static_cast<size_t>(signal.width) + 7) / 8;
        values_[number] = chain.fixed(bytes) >> (8 * bytes - static_cast<size_t>(signal.width));
      }
      signal.changes.emplace_back(ticks.at(tick), values_[number]);
    }
  }

  uint64_t scopes_ = 0;
  std::vector<uint64_t> values_;  // at the end of what is read
};

inline ReadWaveform read_fst_for_test(std::string_view bytes) {
  return FstReaderForTest(bytes).read;
}

}  // namespace flashloom::systolic
