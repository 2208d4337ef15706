#pragma once

#include <string>

#include "flashloom/systolic/report/waveform_writer.h"

namespace flashloom::systolic {

/// A value change dump (IEEE 1364, 18), the text that every tool reads; 1 ns stands for a tick.
class VcdWriter final : public WaveformWriter {
 public:
  explicit VcdWriter(ByteSink& sink) : sink_(sink) {}

 private:
  void write_header() override;
  void write_time(int64_t time) override;
  void write_value(size_t signal, uint64_t value) override;
  void write_end(int64_t end) override;

  ByteSink& sink_;
  std::string buffer_;
};

}  // namespace flashloom::systolic
