#include "flashloom/systolic/program/tile_program.h"

#include <fmt/format.h>

#include <string_view>

#include "flashloom/core/error.h"
#include "flashloom/systolic/engine/semaphores.h"
#include "flashloom/systolic/isa/assembler.h"

namespace flashloom::systolic {
namespace {

SramTile allocate(std::string_view memory, int& used, int rows, int limit) {
  if (rows < 1 || rows > limit - used) {
    throw InvalidArgument("systolic", memory, fmt::format("at most {} more rows", limit - used),
                          fmt::format("{}", rows));
  }
  const SramTile tile{.first = used, .rows = rows};
  used += rows;
  return tile;
}

}  // namespace

SramTile TileProgram::allocate_spad(int rows) {
  return allocate("scratchpad", spad_used_, rows, config_.spad_row_count());
}

SramTile TileProgram::allocate_accumulator(int rows) {
  return allocate("accumulation SRAM", accumulator_used_, rows, config_.accumulator_row_count());
}

int TileProgram::allocate_semaphore() {
  if (semaphores_used_ == kSemaphoreCount) {
    throw InvalidArgument("systolic", "semaphores", fmt::format("at most {}", kSemaphoreCount),
                          "one more");
  }
  return semaphores_used_++;
}

Instruction& TileProgram::add(Kind kind, int function, const Sync& sync) {
  Instruction instruction{.kind = kind};
  instruction[Field::function] = function;
  if (sync.acquire || sync.release) {
    instruction[Field::semaphore] = sync.semaphore;
  }
  if (sync.acquire) {
    instruction[Field::acquire] = 1;
    instruction[Field::acquire_value] = *sync.acquire;
  }
  if (sync.release) {
    instruction[Field::release] = 1;
    instruction[Field::release_value] = *sync.release;
  }
  instructions_.push_back(instruction);
  return instructions_.back();
}

Instruction& TileProgram::add_matrix(Function function, const SramTile* spad,
                                     const SramTile* accumulator, const Sync& sync) {
  Instruction& instruction = add(Kind::matrix, static_cast<int>(function), sync);
  if (spad != nullptr) {
    instruction[Field::spad_row] = spad->first;
    instruction[Field::spad_stride] = spad->step;
  }
  if (accumulator != nullptr) {
    instruction[Field::accumulator_row] = accumulator->first;
    instruction[Field::accumulator_stride] = accumulator->step;
  }
  return instruction;
}

void TileProgram::add_transfer(bool is_store, const SramTile& sram, const MemoryTile& memory,
                               const Sync& sync) {
  Instruction& instruction = add(Kind::dma, is_store ? 1 : 0, sync);
  instruction[Field::repeat] = memory.rows;
  instruction[Field::sram_row] = sram.first;
  instruction[Field::sram_stride] = sram.step;
  instruction[Field::is_accumulator] = is_store ? 1 : 0;
  instruction[Field::memory_address] = memory.address;
  instruction[Field::memory_stride] = memory.stride;
  instruction[Field::row_bytes] =
      is_store ? config_.accumulator_row_bytes() : config_.spad_row_bytes();
}

void TileProgram::load(const SramTile& to, const MemoryTile& from, const Sync& sync) {
  add_transfer(false, to, from, sync);
}

void TileProgram::store(const MemoryTile& to, const SramTile& from_accumulator, const Sync& sync) {
  add_transfer(true, from_accumulator, to, sync);
}

void TileProgram::load_stationary(const SramTile& tile, const Sync& sync) {
  add_matrix(Function::load_stationary, &tile, nullptr, sync);
}

void TileProgram::score(const SramTile& keys, const SramTile& sum, const ScoreOptions& options,
                        const Sync& sync) {
  const Function function = options.limit ? Function::score_limit : Function::score;
  Instruction& instruction = add_matrix(function, &keys, &sum, sync);
  // The partial sums of a column climb from the last row: element d - 1 enters first.
  instruction[Field::reverse_in] = 1;
  instruction[Field::reverse_out] = 1;
  instruction[Field::delay] = 1;
  instruction[Field::zero] = options.first ? 1 : 0;
  instruction[Field::causal] = options.causal ? 1 : 0;
  instruction[Field::limit] = options.limit.value_or(0);
}

void TileProgram::value(const SramTile& values, const SramTile& output, bool first,
                        const Sync& sync, std::optional<int> output_empty) {
  Instruction& instruction = add_matrix(Function::value, &values, &output, sync);
  // Probabilities stand with the last key in row 0, and sums go down.
  instruction[Field::reverse_in] = 1;
  instruction[Field::delay] = 1;
  instruction[Field::zero] = first ? 1 : 0;
  if (output_empty) {
    instruction[Field::second_acquire] = 1;
    instruction[Field::second_semaphore] = *output_empty;
    instruction[Field::second_acquire_value] = kEmpty;
  }
}

void TileProgram::reciprocal(const SramTile& sum, const Sync& sync) {
  add_matrix(Function::lse_norm_scale, nullptr, &sum, sync)[Field::wait_previous] = 1;
}

void TileProgram::normalise(const SramTile& output, const Sync& sync) {
  add_matrix(Function::lse_norm, nullptr, &output, sync)[Field::wait_previous] = 1;
}

void TileProgram::fence(bool stop) {
  Instruction& instruction = add(Kind::fence, 0, {});
  instruction[Field::fence_matrix] = 1;
  instruction[Field::fence_dma] = 1;
  instruction[Field::stop] = stop ? 1 : 0;
}

std::vector<uint32_t> TileProgram::words() const {
  return encode_program(instructions_);
}

}  // namespace flashloom::systolic
