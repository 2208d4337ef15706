#pragma once

// The registers of the accelerator, and what is written in them: one table for fsa_config and for
// whoever drives the hardware.

#include <cstdint>
#include <string_view>

namespace flashloom::rtl {

struct ControlRegister {
  std::string_view name;
  uint32_t offset;  // bytes
};

/// Up to words_out the published registers; the others are ours.
inline constexpr ControlRegister kControlRegisters[] = {
    {"push", 0x00},
    {"start", 0x04},
    {"state", 0x08},
    {"cycles", 0x0C},
    {"waits_instruction", 0x10},
    {"matrix_active", 0x14},
    {"dma_active", 0x18},
    {"words", 0x1C},
    {"matrix_instructions", 0x20},
    {"dma_instructions", 0x24},
    {"fences", 0x28},
    {"words_in", 0x2C},
    {"words_out", 0x30},
    {"room", 0x34},
    {"mode", 0x38},
    {"shape", 0x3C},
    {"program_low", 0x40},
    {"program_high", 0x44},
    {"program_words", 0x48},
    {"error", 0x4C},
    {"error_instruction", 0x50},
    {"error_cycle", 0x54},
    {"watchdog", 0x58},
    {"interrupt_enable", 0x5C},
    {"interrupt", 0x60},
    {"waits_array", 0x64},
    {"waits_drain", 0x68},
    {"waits_semaphore", 0x6C},
    {"issued", 0x70},
    {"loads_started", 0x74},
    {"loads_finished", 0x78},
    {"stores_started", 0x7C},
    {"stores_finished", 0x80},
};

/// Of a name in the table; a name that is not there does not compile in constant expressions.
constexpr uint32_t control_register(std::string_view name) {
  for (const ControlRegister& entry : kControlRegisters) {
    if (entry.name == name) {
      return entry.offset;
    }
  }
  throw "no register of this name";
}

inline constexpr std::string_view kStates[] = {"idle", "active", "done", "failed"};

enum class ControlState : uint32_t { idle, active, done, failed };

/// Why a run failed: the number of a name.
inline constexpr std::string_view kErrors[] = {"none",  "kind", "function", "reserved", "no_stop",
                                               "fetch", "load", "store",    "watchdog"};

enum class ControlError : uint32_t {
  none,
  kind,      // a header of no instruction
  function,  // of a matrix or DMA instruction
  reserved,  // bits that belong to no field
  no_stop,   // the fetched words ended before a fence with `stop`
  fetch,     // memory answered a read of words, a load or a store with an error
  load,
  store,
  watchdog,
};

inline constexpr int kWordQueue = 256;  // instruction words before the decoder, as published

}  // namespace flashloom::rtl
