#include "rtl/test/random_program.h"

#include <algorithm>
#include <cstddef>

#include "flashloom/systolic/isa/assembler.h"
#include "flashloom/systolic/program/flash_attention.h"

namespace flashloom::rtl {
namespace {

using systolic::Field;
using systolic::Function;
using systolic::Instruction;
using systolic::Kind;

int below(std::mt19937_64& random, int limit) {
  return static_cast<int>(random() % static_cast<uint64_t>(limit));
}

bool one_in(std::mt19937_64& random, int count) {
  return below(random, count) == 0;
}

// An element: mostly numbers around one, in some programs any bits (subnormals, infinities, NaNs),
// in some of one sign, so that all scores are negative.
enum class Values { ordinary, any, negative_keys, large };

uint32_t element(std::mt19937_64& random, systolic::FloatFormat format, Values values,
                 bool is_key) {
  const auto bits = static_cast<uint32_t>(random());
  if (values == Values::any) {
    return bits & format.mask();
  }
  const int spread = values == Values::large ? 9 : 4;
  const auto exponent = static_cast<uint32_t>(format.bias() + 1 - below(random, spread) +
                                              (values == Values::large ? 4 : 0));
  const uint32_t sign = values == Values::negative_keys ? (is_key ? format.sign_bit() : 0)
                                                        : (bits & 1) * format.sign_bit();
  return sign | (exponent << format.fraction_bits) | ((bits >> 1) & format.fraction_mask());
}

void fill(systolic::MainMemory& memory, systolic::FloatFormat format, int64_t first, int64_t last,
          bool is_key, Values values, std::mt19937_64& random) {
  for (int64_t at = first; at < last; at += format.width() / 8) {
    memory.store(format, at, element(random, format, values, is_key));
  }
}

Values any_values(std::mt19937_64& random) {
  return static_cast<Values>(below(random, 8) < 5 ? 0 : 1 + below(random, 3));
}

Instruction fence(bool matrix, bool dma, bool stop) {
  Instruction instruction{.kind = Kind::fence};
  instruction[Field::fence_matrix] = matrix ? 1 : 0;
  instruction[Field::fence_dma] = dma ? 1 : 0;
  instruction[Field::stop] = stop ? 1 : 0;
  return instruction;
}

Instruction transfer(bool is_store, int rows, int row_bytes) {
  Instruction instruction{.kind = Kind::dma};
  instruction[Field::function] = is_store ? 1 : 0;
  instruction[Field::is_accumulator] = is_store ? 1 : 0;
  instruction[Field::repeat] = rows;
  instruction[Field::sram_stride] = 1;
  instruction[Field::memory_stride] = row_bytes;
  instruction[Field::row_bytes] = row_bytes;
  return instruction;
}

// First row and stride of `count` rows within a memory of `rows`.
void place(Instruction& instruction, Field first, Field stride, int count, int rows,
           std::mt19937_64& random) {
  int step = one_in(random, 4) ? -1 : one_in(random, 6) ? 0 : one_in(random, 4) ? 2 : 1;
  if (std::abs(step) * (count - 1) >= rows) {
    step = 0;
  }
  const int reach = std::abs(step) * (count - 1);
  const int low = below(random, rows - reach);
  instruction[first] = step < 0 ? low + reach : low;
  instruction[stride] = step;
}

// The plan lets these follow each other without a wait.
bool overlaps(Function previous, Function next) {
  const Function score = Function::score;
  return (previous == Function::load_stationary && next == score) ||
         (previous == score && next == Function::value) ||
         (previous == Function::value && next == Function::load_stationary);
}

}  // namespace

RandomProgram random_attention(const systolic::MachineConfig& given, std::mt19937_64& random) {
  const int rows = given.shape.rows;
  const int columns = given.shape.columns;
  systolic::AttentionProblem problem;
  problem.key_heads = 1 + below(random, 2);
  problem.heads = problem.key_heads * (1 + below(random, 2));
  problem.queries = 1 + below(random, 3 * columns);
  problem.keys = 1 + below(random, 4 * rows);
  problem.head_dim = one_in(random, 3) ? 1 + below(random, rows) : rows;
  problem.value_dim = one_in(random, 3) ? 1 + below(random, rows) : rows;
  if (rows == columns && one_in(random, 2)) {
    problem.causal = true;
    problem.keys = problem.queries + (one_in(random, 2) ? 0 : below(random, rows));
  }
  RandomProgram program;
  // The scale is a constant of the hardware: that of its rows, whatever the problem's dimension.
  program.config = given;
  const auto checked = systolic::checked_problem(given, problem);
  std::vector<Instruction> instructions = systolic::flash_attention(given, checked).instructions();
  for (size_t i = 0; i < instructions.size(); ++i) {
    if (instructions[i].kind == Kind::matrix && one_in(random, 12)) {
      instructions[i][Field::wait_previous] = 1;
    }
    if (i > 0 && one_in(random, 40)) {
      instructions.insert(instructions.begin() + static_cast<ptrdiff_t>(i),
                          fence(one_in(random, 2), false, false));
      ++i;
    }
  }
  program.words = systolic::encode_program(instructions);
  const systolic::AttentionLayout layout = systolic::layout_of(given, checked);
  program.memory = systolic::MainMemory(layout.bytes);
  const Values values = any_values(random);
  const systolic::FloatFormat format = given.formats.element;
  fill(program.memory, format, layout.query, layout.key, false, values, random);
  fill(program.memory, format, layout.key, layout.value, true, values, random);
  fill(program.memory, format, layout.value, layout.output, false, values, random);
  return program;
}

RandomProgram random_instructions(const systolic::MachineConfig& config, std::mt19937_64& random) {
  const int rows = config.shape.rows;
  const int columns = config.shape.columns;
  const int spad_rows = config.spad_row_count();
  const int sum_rows = config.accumulator_row_count();
  std::vector<Instruction> program;
  program.push_back(transfer(false, spad_rows, config.spad_row_bytes()));
  program.push_back(fence(false, true, false));
  const int count = 3 + below(random, 9);
  auto previous = Function::lse_norm;
  for (int i = 0; i < count; ++i) {
    Instruction instruction{.kind = Kind::matrix};
    const auto function =
        i == 0 || one_in(random, 3)
            ? static_cast<Function>(below(random, systolic::kFunctionCount))
            : static_cast<Function>((static_cast<int>(previous) + 1) % systolic::kFunctionCount);
    instruction[Field::function] = static_cast<int64_t>(function);
    instruction[Field::wait_previous] =
        !overlaps(systolic::planned_as(previous), systolic::planned_as(function)) ||
        one_in(random, 8);
    place(instruction, Field::spad_row, Field::spad_stride, std::max(rows, columns), spad_rows,
          random);
    place(instruction, Field::accumulator_row, Field::accumulator_stride, rows, sum_rows, random);
    instruction[Field::reverse_in] = below(random, 2);
    instruction[Field::reverse_out] = below(random, 2);
    instruction[Field::delay] = below(random, 2);
    if (systolic::planned_as(previous) == Function::score &&
        instruction[Field::wait_previous] == 0) {
      // The score's last constants are still on their way down the rows: other selects of the input
      // delayer would tear them apart, and exp2 is not defined for what came out.
      instruction[Field::reverse_out] = 0;
      instruction[Field::delay] = 1;
    }
    instruction[Field::zero] = below(random, 2);
    instruction[Field::causal] = rows == columns ? below(random, 2) : 0;
    if (function == Function::score_limit) {
      instruction[Field::limit] = 1 + below(random, rows);
    }
    program.push_back(instruction);
    previous = function;
  }
  program.push_back(fence(true, false, false));
  Instruction store = transfer(true, sum_rows, config.accumulator_row_bytes());
  const int64_t loaded = int64_t{spad_rows} * config.spad_row_bytes();
  // Rows of sums lie at multiples of their size, so that no burst crosses a border of 4 KiB.
  const int64_t to = (loaded + config.accumulator_row_bytes() - 1) /
                     config.accumulator_row_bytes() * config.accumulator_row_bytes();
  store[Field::memory_address] = to;
  program.push_back(store);
  program.push_back(fence(true, true, true));

  RandomProgram result;
  result.config = config;
  result.words = systolic::encode_program(program);
  result.memory = systolic::MainMemory(to + int64_t{sum_rows} * config.accumulator_row_bytes());
  fill(result.memory, config.formats.element, 0, loaded, false, any_values(random), random);
  return result;
}

}  // namespace flashloom::rtl
