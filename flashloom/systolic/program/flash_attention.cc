#include "flashloom/systolic/program/flash_attention.h"

#include <array>
#include <cmath>
#include <optional>

namespace flashloom::systolic {

MachineConfig machine_for(MachineConfig config, const AttentionProblem& problem) {
  if (config.softmax_scale == 0) {
    const int dim = problem.head_dim > 0 ? problem.head_dim : config.shape.rows;
    config.softmax_scale = 1 / std::sqrt(static_cast<double>(dim));
  }
  return config;
}

TileProgram flash_attention(const MachineConfig& config, const AttentionProblem& given) {
  const AttentionProblem problem = checked_problem(config, given);
  const AttentionTiling tiling = tiling_of(config, problem);
  const AttentionLayout layout = layout_of(config, problem);
  const int rows = config.shape.rows;
  const int columns = config.shape.columns;
  const int64_t row_bytes = config.spad_row_bytes();
  const int64_t output_bytes = config.accumulator_row_bytes();

  TileProgram program(config);
  const auto two = [&](int tile_rows) {
    return std::array{program.buffer(program.allocate_spad(tile_rows)),
                      program.buffer(program.allocate_spad(tile_rows))};
  };
  const auto q = two(columns);
  const auto k = two(rows);
  const auto v = two(rows);
  const SramTile sum = program.allocate_accumulator(1);
  const Buffer output = program.buffer(program.allocate_accumulator(rows));
  const std::optional<int> output_empty =
      config.compat ? std::nullopt : std::optional(output.semaphore);

  int query_tiles = 0;
  int key_tiles = 0;
  for (int group = 0; group < tiling.groups; ++group) {
    const int key_group = group / (tiling.groups / problem.key_heads);
    for (int i = 0; i < tiling.query_blocks; ++i, ++query_tiles) {
      const Buffer& qi = q[query_tiles % 2];
      program.load(qi.tile,
                   {layout.query + group * layout.query_group_bytes + i * columns * row_bytes,
                    row_bytes, columns},
                   qi.fill());
      const int visited = tiling.visited(problem, i);
      for (int j = 0; j < visited; ++j, ++key_tiles) {
        const bool first = j == 0;
        const bool last = j == visited - 1;
        const Buffer& kj = k[key_tiles % 2];
        const Buffer& vj = v[key_tiles % 2];
        program.load_stationary(qi.tile.reversed(),
                                {qi.semaphore, first ? std::optional(kFull) : std::nullopt,
                                 last ? std::optional(kEmpty) : std::nullopt});
        program.load(kj.tile,
                     {layout.key + key_group * layout.key_group_bytes + j * rows * row_bytes,
                      row_bytes, rows},
                     kj.fill());
        const bool diagonal = problem.causal && !tiling.packed && j == i + tiling.first_diagonal;
        const bool tail = !diagonal && j == tiling.key_blocks - 1 && tiling.last_keys < rows;
        program.score(kj.tile, sum,
                      {.first = first,
                       .causal = diagonal,
                       .limit = tail ? std::optional(tiling.last_keys) : std::nullopt},
                      kj.drain());
        program.load(vj.tile,
                     {layout.value + key_group * layout.value_group_bytes + j * row_bytes,
                      layout.value_stride, rows},
                     vj.fill());
        program.value(vj.tile, output.tile, first, vj.drain(), first ? output_empty : std::nullopt);
      }
      program.reciprocal(sum);
      program.normalise(output.tile, output.leave_full());
      program.store({layout.output + group * layout.output_group_bytes + i * output_bytes,
                     layout.output_stride, rows},
                    output.tile, {output.semaphore, kFull, kEmpty});
    }
  }
  program.fence(true);
  return program;
}

}  // namespace flashloom::systolic
