#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "flashloom/systolic/isa/isa.h"
#include "flashloom/systolic/machine/machine_config.h"

namespace flashloom::systolic {

/// The tile API: programs for the array are C++ that calls these and collects instructions.

/// Rows in main memory, `stride` bytes apart.
struct MemoryTile {
  int64_t address = 0;
  int64_t stride = 0;
  int rows = 0;
};

/// Rows of an SRAM. reversed() reads them from the last.
struct SramTile {
  int first = 0;
  int rows = 0;
  int step = 1;

  SramTile reversed() const { return {first + step * (rows - 1), rows, -step}; }
};

/// What an instruction waits for and what it leaves: take `semaphore` when it holds `acquire`,
/// write `release` into it when done.
struct Sync {
  int semaphore = 0;
  std::optional<int> acquire;
  std::optional<int> release;
};

inline constexpr int kEmpty = 0;
inline constexpr int kFull = 1;

/// A buffer with its semaphore: a producer fills it when empty, a consumer empties it when full.
struct Buffer {
  SramTile tile;
  int semaphore = 0;

  Sync fill() const { return {semaphore, kEmpty, kFull}; }

  Sync drain() const { return {semaphore, kFull, kEmpty}; }

  Sync take_full() const { return {semaphore, kFull, std::nullopt}; }

  Sync leave_empty() const { return {semaphore, std::nullopt, kEmpty}; }

  Sync leave_full() const { return {semaphore, std::nullopt, kFull}; }
};

struct ScoreOptions {
  bool first = false;        // no earlier tile: sums start from zero
  bool causal = false;       // the diagonal tile
  std::optional<int> limit;  // keys of the tile, if not all of its rows
};

class TileProgram {
 public:
  explicit TileProgram(const MachineConfig& config) : config_(config) {}

  /// Consecutive rows; throws InvalidArgument when the SRAM is full.
  SramTile allocate_spad(int rows);
  SramTile allocate_accumulator(int rows);
  int allocate_semaphore();

  Buffer buffer(SramTile tile) { return {tile, allocate_semaphore()}; }

  void load(const SramTile& to, const MemoryTile& from, const Sync& sync);
  void store(const MemoryTile& to, const SramTile& from_accumulator, const Sync& sync);

  /// Queries into the array; `tile` reversed puts row 0 into column 0.
  void load_stationary(const SramTile& tile, const Sync& sync);
  /// Scores, probabilities and their sum, which is added to `sum`'s row.
  void score(const SramTile& keys, const SramTile& sum, const ScoreOptions& options,
             const Sync& sync);
  /// Rows of `values` are V^T's; adds to `output`. `output_empty`: a semaphore that must hold
  /// kEmpty.
  void value(const SramTile& values, const SramTile& output, bool first, const Sync& sync,
             std::optional<int> output_empty = std::nullopt);
  void reciprocal(const SramTile& sum, const Sync& sync = {});
  void normalise(const SramTile& output, const Sync& sync = {});

  void fence(bool stop = false);

  const std::vector<Instruction>& instructions() const { return instructions_; }

  std::vector<uint32_t> words() const;

 private:
  Instruction& add(Kind kind, int function, const Sync& sync);
  Instruction& add_matrix(Function function, const SramTile* spad, const SramTile* accumulator,
                          const Sync& sync);
  void add_transfer(bool is_store, const SramTile& sram, const MemoryTile& memory,
                    const Sync& sync);

  MachineConfig config_;
  int spad_used_ = 0;
  int accumulator_used_ = 0;
  int semaphores_used_ = 0;
  std::vector<Instruction> instructions_;
};

}  // namespace flashloom::systolic
