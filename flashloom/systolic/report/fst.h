#pragma once

#include <string>
#include <vector>

#include "flashloom/systolic/report/waveform_writer.h"

namespace flashloom::systolic {

/// GTKWave's fast signal trace: binary, by blocks, so that a viewer opens any part of a long trace
/// at once; 1 ns stands for a tick. Nothing is compressed (the format leaves it open block by
/// block) and there is no date: the same run gives the same bytes. GTKWave's fst2vcd makes of it
/// what VcdWriter writes.
///
///     header          times, counts (rewritten at the end, when they are known)
///     value changes   one or more: the values at its begin, a chain of changes for each signal
///                     that changes, the chains' places, the ticks that chains count in
///     geometry        the width of each signal
///     hierarchy       scope and names
class FstWriter final : public WaveformWriter {
 public:
  // 4 MiB of changes a block: the values at its begin, a byte a bit, are 1 % of it for the 45,000
  // bits of a 16 x 16 array.
  static constexpr size_t kBlockBytes = size_t{1} << 22;

  /// Holds about two blocks in memory.
  explicit FstWriter(ByteSink& sink, size_t block_bytes = kBlockBytes)
      : sink_(sink), block_bytes_(block_bytes) {}

 private:
  struct Chain {
    std::string changes;
    size_t tick = 0;  // of its last change, counted in the block's ticks
  };

  void write_header() override;
  void write_time(int64_t time) override;
  void write_value(size_t signal, uint64_t value) override;
  void write_end(int64_t end) override;

  std::string header(int64_t end) const;
  void write_block();
  void write_geometry();
  void write_hierarchy();

  ByteSink& sink_;
  size_t block_bytes_;
  uint64_t blocks_ = 0;

  // The block under way.
  std::string values_at_begin_;  // '0' and '1', a signal after the other, its highest bit first
  int64_t begin_ = 0;
  std::string ticks_;
  size_t tick_count_ = 0;
  int64_t last_tick_ = 0;
  std::vector<Chain> chains_;
  size_t change_bytes_ = 0;
};

}  // namespace flashloom::systolic
