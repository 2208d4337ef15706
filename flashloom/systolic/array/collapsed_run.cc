#include "flashloom/systolic/array/collapsed_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
#include "flashloom/systolic/array/collapsed_columns.h"

namespace flashloom::systolic {
namespace {

struct Block {
  int first;
  int count;
};

// [low, high) in bytes of what loads read and stores write.
struct Range {
  int64_t low = 0;
  int64_t high = 0;

  void add(int64_t from, int64_t to) {
    low = high == low ? from : std::min(low, from);
    high = std::max(high, to);
  }
};

// A program that loads what it has stored needs all columns of a row at once.
bool loads_meet_stores(const Schedule& schedule) {
  Range loads;
  Range stores;
  for (const ValueEvent& event : schedule.events) {
    if (event.kind == ValueEvent::Kind::matrix) {
      continue;
    }
    const Instruction& instruction = schedule.program[static_cast<size_t>(event.instruction)];
    const int64_t first = instruction[Field::memory_address];
    const int64_t last =
        first + (instruction[Field::repeat] - 1) * instruction[Field::memory_stride];
    (instruction.is_store() ? stores : loads)
        .add(std::min(first, last), std::max(first, last) + instruction[Field::row_bytes]);
  }
  return loads.low < stores.high && stores.low < loads.high;
}

std::vector<Block> cut_columns(const MachineConfig& config, bool whole, int granule) {
  const int columns = config.shape.columns;
  const auto parts = whole ? 1 : std::min<int64_t>(thread_count(), tile_count(columns, granule));
  const auto width = static_cast<int>(tile_count(tile_count(columns, parts), granule) * granule);
  std::vector<Block> blocks;
  for (int first = 0; first < columns; first += width) {
    blocks.push_back({first, std::min(width, columns - first)});
  }
  return blocks;
}

class Player {
 public:
  // `alone`: nobody else plays this schedule, so the machine's scratchpad can be kept up to date.
  Player(const MachineConfig& config, const Schedule& schedule, MachineState& state,
         const Block& block, CollapsedColumns& columns, bool alone)
      : config_(config),
        schedule_(schedule),
        state_(state),
        block_(block),
        columns_(columns),
        alone_(alone) {}

  void play(const ValueEvent& event) {
    const Instruction& instruction = schedule_.program[static_cast<size_t>(event.instruction)];
    if (event.kind == ValueEvent::Kind::matrix) {
      play_matrix(instruction);
      return;
    }
    for (int64_t i = 0; i < instruction[Field::repeat]; ++i) {
      const int64_t row = instruction[Field::sram_row] + i * instruction[Field::sram_stride];
      std::byte* memory = state_.memory.bytes().data() + instruction[Field::memory_address] +
                          i * instruction[Field::memory_stride];
      if (instruction[Field::is_accumulator] != 0) {
        memory += block_.first * config_.formats.accumulator.width() / 8;
        instruction.is_store() ? columns_.get_accumulator_row(row, memory)
                               : columns_.set_accumulator_row(row, memory);
      } else if (!instruction.is_store()) {
        columns_.set_spad_row(row, memory);
        if (alone_) {
          move_row(config_, instruction, i, state_);
        }
      } else {
        throw Unsupported("systolic", "stores of scratchpad rows in the fast tier");
      }
    }
  }

 private:
  void play_matrix(const Instruction& instruction) {
    switch (instruction.matrix_function()) {
      case Function::load_stationary:
        columns_.load_stationary(instruction);
        break;
      case Function::score:
      case Function::score_limit:
        columns_.score(instruction);
        break;
      case Function::value:
        columns_.value(instruction);
        break;
      case Function::lse_norm_scale:
        columns_.reciprocal(instruction);
        break;
      case Function::lse_norm:
        columns_.normalise(instruction);
        break;
    }
  }

  const MachineConfig& config_;
  const Schedule& schedule_;
  MachineState& state_;
  Block block_;
  CollapsedColumns& columns_;
  bool alone_;
};

// What the last loads left in the scratchpad; memory that they read has not changed since.
void fill_spad(const MachineConfig& config, const Schedule& schedule, MachineState& state) {
  std::vector<bool> seen(static_cast<size_t>(state.spad.row_count()));
  size_t missing = seen.size();
  for (size_t i = schedule.events.size(); i-- > 0 && missing > 0;) {
    const ValueEvent& event = schedule.events[i];
    const Instruction& instruction = schedule.program[static_cast<size_t>(event.instruction)];
    if (event.kind != ValueEvent::Kind::load || instruction[Field::is_accumulator] != 0) {
      continue;
    }
    for (int64_t row = instruction[Field::repeat] - 1; row >= 0; --row) {
      const auto at =
          static_cast<size_t>(instruction[Field::sram_row] + row * instruction[Field::sram_stride]);
      if (!seen[at]) {
        seen[at] = true;
        --missing;
        move_row(config, instruction, row, state);
      }
    }
  }
}

// A row of an SRAM as it would lie in memory, and back.
std::vector<std::byte> packed(FloatFormat format, std::span<const uint32_t> numbers) {
  std::vector<std::byte> bytes;
  for (const uint32_t number : numbers) {
    for (int i = 0; i < format.width() / 8; ++i) {
      bytes.push_back(static_cast<std::byte>(number >> (8 * i)));
    }
  }
  return bytes;
}

void check_program(const Schedule& schedule) {
  for (const MatrixIssue& issue : schedule.issues) {
    const Instruction& instruction = schedule.program[static_cast<size_t>(issue.instruction)];
    if (!collapses(instruction)) {
      throw Unsupported("systolic",
                        fmt::format("instruction {} ({}): delays that are not those of its wave "
                                    "run register by register only",
                                    issue.instruction, mnemonic(instruction)));
    }
  }
}

}  // namespace

void run_collapsed(const MachineConfig& config, const Schedule& schedule, MachineState& state,
                   const CollapsedOptions& options) {
  check_program(schedule);
  const bool soft = options.soft || vector_columns(config, 0, config.shape.columns) == nullptr;
  const int granule = soft ? 1 : vector_column_granule();
  const bool alone = loads_meet_stores(schedule);
  const std::vector<Block> blocks = cut_columns(config, alone, granule);
  const auto sum_bytes = static_cast<size_t>(config.formats.accumulator.width() / 8);
  parallel_for(static_cast<int64_t>(blocks.size()), [&](int64_t index) {
    const Block& block = blocks[static_cast<size_t>(index)];
    const auto columns = soft ? soft_columns(config, block.first, block.count)
                              : vector_columns(config, block.first, block.count);
    for (int row = 0; row < state.spad.row_count(); ++row) {
      columns->set_spad_row(
          row, packed(config.formats.element, std::as_const(state.spad).row(row)).data());
    }
    for (int row = 0; row < state.accumulators.row_count(); ++row) {
      const auto sums =
          packed(config.formats.accumulator, std::as_const(state.accumulators).row(row));
      columns->set_accumulator_row(row, sums.data() + static_cast<size_t>(block.first) * sum_bytes);
    }
    Player player(config, schedule, state, block, *columns, alone);
    int64_t done = 0;
    for (const ValueEvent& event : schedule.events) {
      player.play(event);
      ++done;
      if (index == 0 && options.progress != nullptr && done % 64 == 0) {
        (*options.progress)(done);
      }
    }
    std::vector<std::byte> sums(static_cast<size_t>(block.count) * sum_bytes);
    for (int row = 0; row < state.accumulators.row_count(); ++row) {
      columns->get_accumulator_row(row, sums.data());
      const auto row_of_state = state.accumulators.row(row).subspan(
          static_cast<size_t>(block.first), static_cast<size_t>(block.count));
      for (size_t c = 0; c < row_of_state.size(); ++c) {
        uint32_t bits = 0;
        for (size_t i = 0; i < sum_bytes; ++i) {
          bits |= static_cast<uint32_t>(sums[c * sum_bytes + i]) << (8 * i);
        }
        row_of_state[c] = bits;
      }
    }
  });
  if (!alone) {
    fill_spad(config, schedule, state);
  }
}

}  // namespace flashloom::systolic
