#include "flashloom/systolic/program/flash_attention.h"

#include <array>
#include <cmath>
#include <optional>
#include <vector>

#include "flashloom/systolic/engine/semaphores.h"

namespace flashloom::systolic {
namespace {

// The output of a block of queries: a tile for every block of value columns.
using Output = std::vector<Buffer>;

class FlashAttention {
 public:
  FlashAttention(const MachineConfig& config, const AttentionProblem& problem)
      : config_(config),
        problem_(problem),
        tiling_(tiling_of(config, problem)),
        layout_(layout_of(config, problem)),
        program_(config),
        q_(two(config.shape.columns)),
        k_(two(config.shape.rows)),
        v_(two(config.shape.rows)),
        sum_(program_.allocate_accumulator(1)) {
    const int tiles = tiling_.value_blocks * config.shape.rows;
    constexpr int kInputBuffers = 6;
    const bool twice = !config.compat && config.accumulator_row_count() >= 1 + 2 * tiles &&
                       kInputBuffers + 2 * tiling_.value_blocks <= kSemaphoreCount;
    outputs_.resize(twice ? 2 : 1);
    for (Output& output : outputs_) {
      for (int b = 0; b < tiling_.value_blocks; ++b) {
        output.push_back(program_.buffer(program_.allocate_accumulator(config.shape.rows)));
      }
    }
  }

  TileProgram build() {
    const int blocks = tiling_.groups * tiling_.query_blocks;
    const bool shadow = config_.shape.shadow;
    load_queries(0);
    for (int n = 0; n < blocks; ++n) {
      const int tiles = tiling_.visited(problem_, n % tiling_.query_blocks);
      for (int j = 0; j < tiles; ++j) {
        if (!shadow || (n == 0 && j == 0)) {
          load_stationary(n, j == 0, shadow || j == tiles - 1);
        }
        add_tile(n, j);
        if (shadow && j == 0 && n + 1 < blocks) {
          load_queries(n + 1);
        }
      }
      if (shadow && n + 1 < blocks) {
        load_stationary(n + 1, true, true);
      }
      finish_block(n);
      if (!shadow && n + 1 < blocks) {
        load_queries(n + 1);
      }
    }
    program_.fence(true);
    return program_;
  }

 private:
  using TwoBuffers = std::array<Buffer, 2>;

  TwoBuffers two(int rows) {
    return {program_.buffer(program_.allocate_spad(rows)),
            program_.buffer(program_.allocate_spad(rows))};
  }

  int group(int n) const { return n / tiling_.query_blocks; }

  int key_group(int n) const { return group(n) / (tiling_.groups / problem_.key_heads); }

  void load_queries(int n) {
    const int64_t row_bytes = config_.spad_row_bytes();
    const int columns = config_.shape.columns;
    const Buffer& q = q_[static_cast<size_t>(n % 2)];
    program_.load(q.tile,
                  {layout_.query + group(n) * layout_.query_group_bytes +
                       n % tiling_.query_blocks * columns * row_bytes,
                   row_bytes, columns},
                  q.fill());
  }

  void load_stationary(int n, bool first, bool last) {
    const Buffer& q = q_[static_cast<size_t>(n % 2)];
    program_.load_stationary(q.tile.reversed(),
                             {q.semaphore, first ? std::optional(kFull) : std::nullopt,
                              last ? std::optional(kEmpty) : std::nullopt});
  }

  void add_tile(int n, int j) {
    const int64_t row_bytes = config_.spad_row_bytes();
    const int rows = config_.shape.rows;
    const bool first = j == 0;
    const Buffer& k = k_[key_tiles_++ % 2];
    program_.load(k.tile,
                  {layout_.key + key_group(n) * layout_.key_group_bytes + j * rows * row_bytes,
                   row_bytes, rows},
                  k.fill());
    const bool diagonal = problem_.causal && !tiling_.packed &&
                          j == n % tiling_.query_blocks + tiling_.first_diagonal;
    const bool tail = !diagonal && j == tiling_.key_blocks - 1 && tiling_.last_keys < rows;
    program_.score(k.tile, sum_,
                   {.first = first,
                    .causal = diagonal,
                    .limit = tail ? std::optional(tiling_.last_keys) : std::nullopt},
                   k.drain());
    for (int b = 0; b < tiling_.value_blocks; ++b) {
      const Buffer& v = v_[value_tiles_++ % 2];
      program_.load(v.tile,
                    {layout_.value + key_group(n) * layout_.value_group_bytes +
                         b * rows * layout_.value_stride + j * row_bytes,
                     layout_.value_stride, rows},
                    v.fill());
      const Buffer& output = this->output(n)[static_cast<size_t>(b)];
      program_.value(v.tile, output.tile, first, v.drain(),
                     first && !config_.compat ? std::optional(output.semaphore) : std::nullopt);
    }
  }

  void finish_block(int n) {
    program_.reciprocal(sum_);
    for (int b = 0; b < tiling_.value_blocks; ++b) {
      const Buffer& output = this->output(n)[static_cast<size_t>(b)];
      program_.normalise(output.tile, output.leave_full());
      program_.store({layout_.output + group(n) * layout_.output_group_bytes +
                          b * config_.shape.rows * layout_.output_stride +
                          n % tiling_.query_blocks * config_.accumulator_row_bytes(),
                      layout_.output_stride, config_.shape.rows},
                     output.tile, output.drain());
    }
  }

  const Output& output(int n) const { return outputs_[static_cast<size_t>(n) % outputs_.size()]; }

  const MachineConfig& config_;
  const AttentionProblem& problem_;
  AttentionTiling tiling_;
  AttentionLayout layout_;
  TileProgram program_;
  TwoBuffers q_;
  TwoBuffers k_;
  TwoBuffers v_;
  SramTile sum_;
  std::vector<Output> outputs_;
  size_t key_tiles_ = 0;
  size_t value_tiles_ = 0;
};

}  // namespace

MachineConfig machine_for(MachineConfig config, const AttentionProblem& problem) {
  if (config.softmax_scale == 0) {
    const int dim = problem.head_dim > 0 ? problem.head_dim : config.shape.rows;
    config.softmax_scale = 1 / std::sqrt(static_cast<double>(dim));
  }
  if (config.accumulator_rows == 0 && problem.value_dim > config.shape.rows) {
    config.accumulator_rows = accumulator_rows_for(config, problem);
  }
  return config;
}

TileProgram flash_attention(const MachineConfig& given, const AttentionProblem& asked) {
  const AttentionProblem problem = checked_problem(given, asked);
  const MachineConfig config = machine_for(given, problem);
  return FlashAttention(config, problem).build();
}

}  // namespace flashloom::systolic
