#include "flashloom/systolic/report/vcd.h"

#include <fmt/format.h>

namespace flashloom::systolic {
namespace {

// Identifiers of VCD: digits to the base 94 from '!' on.
std::string identifier(size_t number) {
  constexpr size_t kBase = 94;
  std::string text;
  do {
    text += static_cast<char>('!' + number % kBase);
    number /= kBase;
  } while (number > 0);
  return text;
}

}  // namespace

void VcdWriter::write_header() {
  buffer_ = "$timescale 1 ns $end\n$scope module machine $end\n";
  size_t number = 0;
  walk([&](const std::string& scope) { buffer_ += "$scope module " + scope + " $end\n"; },
       [&](const Signal& signal) {
         buffer_ += fmt::format("$var wire {} {} {} $end\n", signal.width, identifier(number++),
                                signal.name);
       },
       [&] { buffer_ += "$upscope $end\n"; });
  buffer_ += "$upscope $end\n$enddefinitions $end\n";
}

void VcdWriter::write_time(int64_t time) {
  constexpr size_t kWriteBytes = size_t{1} << 16;  // a system call for many ticks
  if (buffer_.size() >= kWriteBytes) {
    sink_.append(buffer_);
    buffer_.clear();
  }
  buffer_ += fmt::format("#{}\n", time);
}

void VcdWriter::write_value(size_t signal, uint64_t value) {
  if (signals()[signal].width == 1) {
    buffer_ += fmt::format("{}{}\n", value, identifier(signal));
  } else {
    buffer_ += fmt::format("b{:b} {}\n", value, identifier(signal));
  }
}

void VcdWriter::write_end(int64_t /*end*/) {
  sink_.append(buffer_);
  buffer_.clear();
}

}  // namespace flashloom::systolic
