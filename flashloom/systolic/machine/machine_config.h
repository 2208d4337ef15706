#pragma once

#include <cstdint>
#include <string>

#include "flashloom/systolic/numeric/float_format.h"
#include "flashloom/systolic/plan/cycle_form.h"

namespace flashloom::systolic {

/// Main memory as the engine sees it: channels that serve rows in order of arrival and share one
/// budget of bytes for reads and writes.
struct MemoryConfig {
  int channels = 8;
  double bytes_per_cycle = 512;  // of all channels together
  int interleave = 256;          // bytes of consecutive addresses in one channel
  int latency = 150;        // cycles from a row's service to its data, or to a write's response
  double stall_chance = 0;  // of a row to be held up further, by 1 to stall_cycles cycles
  int stall_cycles = 32;
  uint64_t seed = 1;

  bool operator==(const MemoryConfig&) const = default;
};

struct DmaConfig {
  int ports = 0;        // 0: 4 up to 8 rows, 8 up to 64, 16 above
  int load_queue = 16;  // instructions that wait for their semaphores
  int store_queue = 8;
  int outstanding = 16;  // rows under way on a port, for each direction

  bool operator==(const DmaConfig&) const = default;
};

struct ControllerConfig {
  int slots = 2;         // instructions that may overlap
  bool serial = false;   // every instruction waits for all before it
  int matrix_queue = 8;  // instructions

  bool operator==(const ControllerConfig&) const = default;
};

/// One machine: everything that decides its cycles and its bits.
struct MachineConfig {
  std::string name = "custom";
  ArrayShape shape;
  ArrayFormats formats;
  bool compat = false;         // the published defects
  double softmax_scale = 0;    // 0: 1 / sqrt(rows)
  double frequency_ghz = 1.5;  // the paper's
  int spad_rows = 0;           // 0: two tiles each of Q, K and V
  int accumulator_rows = 0;    // 0: one row of sums and one output tile
  ControllerConfig controller;
  DmaConfig dma;
  MemoryConfig memory;

  bool operator==(const MachineConfig&) const = default;

  int spad_row_count() const;
  int accumulator_row_count() const;
  int port_count() const;

  /// Of the controller, and the one in which a shadow register is loaded.
  int slot_count() const { return controller.slots + (shape.shadow ? 1 : 0); }

  double scale() const;
  /// Bytes of a row of either SRAM, and that a port moves in a cycle.
  int spad_row_bytes() const;
  int accumulator_row_bytes() const;
  int beat_bytes() const;
  /// log2(e) · scale, rounded for the PEs and for the accumulators.
  uint32_t element_scale_bits() const;
  uint32_t accumulator_scale_bits() const;
};

/// Throws InvalidArgument with the reason if the machine cannot be built; parameters have the names
/// of machine_keys().
void check_machine(const MachineConfig& config);

}  // namespace flashloom::systolic
