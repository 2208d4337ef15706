#pragma once

#include <cstdint>

namespace flashloom {

/// Where memory lies, as in DLPack: a kind and an ordinal.
struct Device {
  enum class Kind : uint8_t { cpu, cuda };

  Kind kind = Kind::cpu;
  int index = 0;

  bool is_cpu() const { return kind == Kind::cpu; }

  bool is_cuda() const { return kind == Kind::cuda; }

  bool operator==(const Device&) const = default;
};

/// A queue of work: a cudaStream_t for CUDA, unused on the CPU, where calls return when done.
struct Stream {
  void* handle = nullptr;
};

}  // namespace flashloom
