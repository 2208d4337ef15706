#include "flashloom/systolic/report/fst.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <numbers>

namespace flashloom::systolic {
namespace {

// A block: its type, its length without the type's byte but with the length's eight, its content.
constexpr char kHeader = 0;
constexpr char kValueChanges = 1;
constexpr char kGeometry = 3;
constexpr char kHierarchyLz4 = 6;
constexpr size_t kLengthBytes = 8;

// Tags of the hierarchy.
constexpr char kScope = '\xfe';
constexpr char kModule = 0;
constexpr char kUpscope = '\xff';
constexpr char kWire = 16;
constexpr char kNoDirection = 0;

constexpr uint64_t kByteMask = 0xff;

// Numbers of fixed size have their highest byte first.
void put_u64(std::string& to, uint64_t value) {
  for (int shift = 56; shift >= 0; shift -= 8) {
    to += static_cast<char>((value >> shift) & kByteMask);
  }
}

// Others seven bits a byte, the lowest first, the top bit set in all but the last byte.
void put_varint(std::string& to, uint64_t value) {
  constexpr uint64_t kMore = 0x80;
  for (; value >= kMore; value >>= 7) {
    to += static_cast<char>((value & (kMore - 1)) | kMore);
  }
  to += static_cast<char>(value);
}

std::string block(char type, std::string_view content) {
  std::string bytes(1, type);
  put_u64(bytes, content.size() + kLengthBytes);
  return bytes.append(content);
}

// A block of LZ4 that is one run of literals: a token with 15 or the length in its upper half, the
// rest of the length in bytes of which 255 says that another follows, the text.
std::string lz4_literals(std::string_view text) {
  constexpr size_t kInToken = 15;
  constexpr size_t kFull = 255;
  std::string bytes(1, static_cast<char>(std::min(text.size(), kInToken) << 4));
  if (text.size() >= kInToken) {
    const size_t rest = text.size() - kInToken;
    bytes.append(rest / kFull, static_cast<char>(kFull));
    bytes += static_cast<char>(rest % kFull);
  }
  return bytes.append(text);
}

}  // namespace

std::string FstWriter::header(int64_t end) const {
  constexpr char kNanoseconds = -9;  // power of ten of a tick in seconds
  constexpr size_t kWriterNameBytes = 128;
  constexpr size_t kDateBytes = 119;
  constexpr char kVerilog = 0;
  uint64_t scopes = 1;  // the machine
  walk([&](const std::string& /*scope*/) { ++scopes; }, [](const Signal& /*signal*/) {}, [] {});
  std::string text;
  put_u64(text, 0);  // begin
  put_u64(text, static_cast<uint64_t>(end));
  // Euler's number tells a reader the byte order of floating-point values: the lowest first.
  const auto euler = std::bit_cast<uint64_t>(std::numbers::e);
  for (int shift = 0; shift < 64; shift += 8) {
    text += static_cast<char>((euler >> shift) & kByteMask);
  }
  put_u64(text, 2 * block_bytes_);  // memory of the writer
  put_u64(text, scopes);
  put_u64(text, signals().size());  // names
  put_u64(text, signals().size());  // of as many signals
  put_u64(text, blocks_);
  text += kNanoseconds;
  std::string name = "flashloom simulate";
  name.resize(kWriterNameBytes, '\0');
  text += name;
  text.append(kDateBytes, '\0');
  text += kVerilog;
  put_u64(text, 0);  // the tick that a viewer calls zero
  return block(kHeader, text);
}

void FstWriter::write_header() {
  chains_.resize(signals().size());
  for (const Signal& signal : signals()) {
    values_at_begin_.append(static_cast<size_t>(signal.width), '0');
  }
  sink_.append(header(0));
}

void FstWriter::write_time(int64_t time) {
  if (change_bytes_ + ticks_.size() >= block_bytes_) {
    write_block();
  }
  // The first tick of a block counts from 0.
  put_varint(ticks_, static_cast<uint64_t>(tick_count_ == 0 ? time : time - last_tick_));
  ++tick_count_;
  last_tick_ = time;
}

// Ticks since the signal's last change in this block (its first tick for the first), then the
// value: a single bit beside them, others in whole bytes, the highest bit first, zeros behind the
// lowest.
void FstWriter::write_value(size_t signal, uint64_t value) {
  Chain& chain = chains_[signal];
  const size_t tick = tick_count_ - 1;
  const uint64_t ticks = tick - chain.tick;
  const size_t before = chain.changes.size();
  const int width = signals()[signal].width;
  if (width == 1) {
    put_varint(chain.changes, (ticks << 2) | (value << 1));
  } else {
    put_varint(chain.changes, ticks << 1);
    const int bytes = (width + 7) / 8;
    const uint64_t bits = value << (8 * bytes - width);
    for (int i = bytes - 1; i >= 0; --i) {
      chain.changes += static_cast<char>((bits >> (8 * i)) & kByteMask);
    }
  }
  chain.tick = tick;
  change_bytes_ += chain.changes.size() - before;
}

void FstWriter::write_block() {
  constexpr char kPacking = 'Z';  // zlib, had a chain a length other than 0 before it
  std::string text;
  text.reserve(change_bytes_ + values_at_begin_.size() + ticks_.size() + 16 * chains_.size());
  put_u64(text, static_cast<uint64_t>(begin_));
  put_u64(text, static_cast<uint64_t>(last_tick_));
  put_u64(text, change_bytes_);  // what a reader needs for all chains
  put_varint(text, values_at_begin_.size());
  put_varint(text, values_at_begin_.size());  // the same: not compressed
  put_varint(text, signals().size());
  text += values_at_begin_;
  put_varint(text, signals().size());
  const size_t chains_begin = text.size();  // places of chains count from here
  text += kPacking;
  std::string places;  // distance to the chain before, or how many signals have none
  size_t last_place = 0;
  uint64_t without = 0;
  const auto put_without = [&] {
    if (without > 0) {
      put_varint(places, without << 1);
    }
    without = 0;
  };
  for (Chain& chain : chains_) {
    if (chain.changes.empty()) {
      ++without;
      continue;
    }
    put_without();
    const size_t place = text.size() - chains_begin;
    put_varint(places, ((place - last_place) << 1) | 1);
    last_place = place;
    put_varint(text, 0);  // not compressed
    text += chain.changes;
    chain.changes.clear();
    chain.tick = 0;
  }
  put_without();
  text += places;
  put_u64(text, places.size());
  text += ticks_;
  put_u64(text, ticks_.size());
  put_u64(text, ticks_.size());  // the same: not compressed
  put_u64(text, tick_count_);
  sink_.append(block(kValueChanges, text));
  ++blocks_;

  // The next block begins where this one ends, so that every time is in one.
  begin_ = last_tick_;
  values_at_begin_.clear();
  for (const Signal& signal : signals()) {
    values_at_begin_ += fmt::format("{:0{}b}", signal.value, signal.width);
  }
  ticks_.clear();
  tick_count_ = 0;
  change_bytes_ = 0;
}

void FstWriter::write_geometry() {
  std::string widths;
  for (const Signal& signal : signals()) {
    put_varint(widths, static_cast<uint64_t>(signal.width));
  }
  std::string text;
  put_u64(text, widths.size());
  put_u64(text, signals().size());
  sink_.append(block(kGeometry, text + widths));
}

void FstWriter::write_hierarchy() {
  constexpr uint64_t kNewSignal = 0;  // else the number of the one that this is another name of
  std::string tree;
  const auto enter = [&](const std::string& scope) {
    tree += kScope;
    tree += kModule;
    tree += scope;
    tree.append(2, '\0');  // the name's end and an empty name of the component
  };
  const auto leave = [&] { tree += kUpscope; };
  enter("machine");
  walk(
      enter,
      [&](const Signal& signal) {
        tree += kWire;
        tree += kNoDirection;
        tree += signal.name;
        tree += '\0';
        put_varint(tree, static_cast<uint64_t>(signal.width));
        put_varint(tree, kNewSignal);
      },
      leave);
  leave();
  std::string text;
  put_u64(text, tree.size());
  sink_.append(block(kHierarchyLz4, text + lz4_literals(tree)));
}

void FstWriter::write_end(int64_t end) {
  write_block();
  write_geometry();
  write_hierarchy();
  sink_.overwrite(0, header(end));
}

}  // namespace flashloom::systolic
