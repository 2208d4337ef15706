#include "flashloom/systolic/machine/machine_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string_view>

#include "flashloom/core/error.h"
#include "flashloom/systolic/numeric/exp2.h"

namespace flashloom::systolic {
namespace {

constexpr int kBitsPerByte = 8;

// The instruction's limit and the bytes of a DMA row end here.
constexpr int kMostRows = 256;
constexpr int kMostRowBytes = 1024;

// Far beyond what a multiply-add is cut into.
constexpr int kMostStages = 16;

// Bytes a cycle: cycles of a long run stay far from the ends of their integers.
constexpr double kLeastBandwidth = 0.01;

void check(bool ok, std::string_view what, std::string_view expected, std::string_view actual) {
  if (!ok) {
    throw InvalidArgument("systolic", what, expected, actual);
  }
}

void check_range(std::string_view what, int value, int low, int high) {
  check(value >= low && value <= high, what, fmt::format("from {} to {}", low, high),
        fmt::format("{}", value));
}

void check_positive(std::string_view what, double value) {
  check(value > 0 && std::isfinite(value), what, "more than 0", fmt::format("{}", value));
}

}  // namespace

int MachineConfig::spad_row_count() const {
  return spad_rows > 0 ? spad_rows : 2 * shape.columns + 4 * shape.rows;
}

int MachineConfig::accumulator_row_count() const {
  return accumulator_rows > 0 ? accumulator_rows : 1 + shape.rows;
}

int MachineConfig::port_count() const {
  if (dma.ports > 0) {
    return dma.ports;
  }
  return shape.rows <= 8 ? 4 : shape.rows <= 64 ? 8 : 16;
}

double MachineConfig::scale() const {
  return softmax_scale > 0 ? softmax_scale : 1 / std::sqrt(static_cast<double>(shape.rows));
}

int MachineConfig::spad_row_bytes() const {
  return shape.rows * formats.element.width() / kBitsPerByte;
}

int MachineConfig::accumulator_row_bytes() const {
  return shape.columns * formats.accumulator.width() / kBitsPerByte;
}

int MachineConfig::beat_bytes() const {
  return std::max(8, 4 * shape.rows / port_count());
}

uint32_t MachineConfig::element_scale_bits() const {
  return round_double(formats.element, std::numbers::log2e * scale());
}

uint32_t MachineConfig::accumulator_scale_bits() const {
  return round_double(formats.accumulator, std::numbers::log2e * scale());
}

void check_machine(const MachineConfig& config) {
  check_range("rows", config.shape.rows, 2, kMostRows);
  check_range("columns", config.shape.columns, 2, 2 * kMostRows);
  check_range("divider-latency", config.shape.divider_latency, 1, 1 << 10);
  check_range("pe-depth", config.shape.pe_depth, 1, kMostStages);
  const int most = most_pieces(config.formats.accumulator);
  check(config.shape.pieces >= 1 && config.shape.pieces <= most &&
            (config.shape.pieces & (config.shape.pieces - 1)) == 0,
        "pieces", fmt::format("a power of two up to {}", most),
        fmt::format("{}", config.shape.pieces));
  check(config.formats.element.width() <= config.formats.accumulator.width(), "formats",
        "an accumulator at least as wide as the element",
        fmt::format("{} elements, {} accumulators", float_format_name(config.formats.element),
                    float_format_name(config.formats.accumulator)));
  check(config.spad_row_bytes() <= kMostRowBytes && config.accumulator_row_bytes() <= kMostRowBytes,
        "array", fmt::format("SRAM rows of at most {} bytes", kMostRowBytes),
        fmt::format("{} and {}", config.spad_row_bytes(), config.accumulator_row_bytes()));
  check(config.softmax_scale >= 0 && std::isfinite(config.softmax_scale), "scale", "0 or more",
        fmt::format("{}", config.softmax_scale));
  check_positive("frequency", config.frequency_ghz);
  check_range("slots", config.controller.slots, 1, 3);
  check_range("matrix-queue", config.controller.matrix_queue, 1, 1 << 16);
  check_range("ports", config.dma.ports, 0, 1 << 10);
  check_range("load-queue", config.dma.load_queue, 1, 1 << 16);
  check_range("store-queue", config.dma.store_queue, 1, 1 << 16);
  check_range("outstanding", config.dma.outstanding, 1, 1 << 16);
  check_range("channels", config.memory.channels, 1, 1 << 12);
  check_range("interleave", config.memory.interleave, 1, 1 << 30);
  check_range("latency", config.memory.latency, 0, 1 << 20);
  check_range("stall-cycles", config.memory.stall_cycles, 1, 1 << 20);
  check_positive("bandwidth", config.memory.bytes_per_cycle);
  check(config.memory.bytes_per_cycle >= kLeastBandwidth, "bandwidth",
        fmt::format("at least {}", kLeastBandwidth),
        fmt::format("{}", config.memory.bytes_per_cycle));
  check(config.memory.stall_chance >= 0 && config.memory.stall_chance <= 1, "stall-chance",
        "from 0 to 1", fmt::format("{}", config.memory.stall_chance));
  check_range("spad-rows", config.spad_row_count(), config.shape.rows, 1 << 20);
  check_range("accumulator-rows", config.accumulator_row_count(), 1, 1 << 20);
}

}  // namespace flashloom::systolic
