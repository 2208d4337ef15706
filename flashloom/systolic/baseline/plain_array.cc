#include "flashloom/systolic/baseline/plain_array.h"

#include <algorithm>
#include <cmath>

#include "flashloom/systolic/memory/memory_timing.h"

namespace flashloom::systolic {
namespace {

class PlainRun {
 public:
  PlainRun(const MachineConfig& config, const AttentionProblem& problem, const PlainArray& plain)
      : config_(config),
        problem_(problem),
        plain_(plain),
        tiling_(tiling_of(config, problem)),
        memory_(config) {}

  PlainArrayRun run() {
    for (int group = 0; group < tiling_.groups; ++group) {
      for (int block = 0; block < tiling_.query_blocks; ++block) {
        run_block(tiling_.visited(problem_, block));
      }
    }
    run_.cycles = std::max(last_store_, array_free_);
    return run_;
  }

 private:
  // N x N weights are loaded (N cycles), M rows stream and drain (M + 2N - 1).
  int64_t product_cycles() const {
    const int n = std::max(config_.shape.rows, config_.shape.columns);
    return config_.shape.rows + 3 * n - 1;
  }

  int64_t vector_cycles(double passes) const {
    return static_cast<int64_t>(
        std::ceil(passes * config_.shape.rows * config_.shape.columns / plain_.vector_lanes));
  }

  // Rows of one tile over the ports; the cycle in which the last is there.
  int64_t transfer(bool is_write, int rows, int bytes, int64_t from) {
    int64_t done = from;
    const int ports = config_.port_count();
    for (int row = 0; row < rows; ++row) {
      MemoryRequest request{.port = row % ports,
                            .is_write = is_write,
                            .address = address_,
                            .bytes = bytes,
                            .issued = from};
      address_ += bytes;
      memory_.request(request);
      done = std::max(done, request.finished);
    }
    return done;
  }

  int64_t load_tiles(int count, int64_t from) {
    return transfer(false, count * config_.shape.rows, config_.spad_row_bytes(), from);
  }

  void run_block(int tiles) {
    const int64_t queries =
        transfer(false, config_.shape.columns, config_.spad_row_bytes(), queries_free_);
    // Of the tile before, and the one before that: products still to come, buffers still in use.
    int64_t softmax_done = 0;
    int64_t key_free[2] = {array_free_, array_free_};
    int64_t value_free[2] = {array_free_, array_free_};
    int64_t values_ready = 0;
    for (int tile = 0; tile < tiles; ++tile) {
      const int64_t keys = load_tiles(1, key_free[tile % 2]);
      const int64_t scores = multiply(std::max(queries, keys));
      key_free[tile % 2] = scores;
      const int64_t values = load_tiles(tiling_.value_blocks, value_free[tile % 2]);
      if (plain_.overlapped && tile > 0) {
        finish_tile(std::max(softmax_done, values_ready), value_free[(tile - 1) % 2]);
      }
      softmax_done = vector(scores, plain_.softmax_passes);
      values_ready = values;
      if (!plain_.overlapped || tile == tiles - 1) {
        finish_tile(std::max(softmax_done, values_ready), value_free[tile % 2]);
      }
    }
    queries_free_ = array_free_;
    const int64_t normalised = vector(output_done_, tiling_.value_blocks * plain_.output_passes);
    last_store_ = std::max(last_store_, transfer(true, tiling_.value_blocks * config_.shape.rows,
                                                 config_.accumulator_row_bytes(), normalised));
  }

  // PV, and the output's update behind it.
  void finish_tile(int64_t ready, int64_t& value_free) {
    int64_t products = 0;
    for (int b = 0; b < tiling_.value_blocks; ++b) {
      products = multiply(ready);
    }
    value_free = products;
    output_done_ = vector(products, tiling_.value_blocks * plain_.output_passes);
  }

  int64_t multiply(int64_t ready) {
    run_.memory_waits += std::max<int64_t>(0, ready - std::max(array_free_, vector_free_));
    const int64_t cycles = product_cycles();
    array_free_ = std::max(array_free_, ready) + cycles;
    run_.array_busy += cycles;
    return array_free_;
  }

  int64_t vector(int64_t ready, double passes) {
    const int64_t cycles = vector_cycles(passes);
    vector_free_ = std::max(vector_free_, ready) + cycles;
    run_.vector_busy += cycles;
    return vector_free_;
  }

  const MachineConfig& config_;
  const AttentionProblem& problem_;
  PlainArray plain_;
  AttentionTiling tiling_;
  MemoryTiming memory_;
  PlainArrayRun run_;
  int64_t address_ = 0;
  int64_t array_free_ = 0;
  int64_t vector_free_ = 0;
  int64_t queries_free_ = 0;
  int64_t output_done_ = 0;
  int64_t last_store_ = 0;
};

}  // namespace

PlainArrayRun run_plain_array(const MachineConfig& config, const AttentionProblem& given,
                              const PlainArray& plain) {
  const AttentionProblem problem = checked_problem(config, given);
  PlainArrayRun run = PlainRun(config, problem, plain).run();
  const double queries = problem.queries;
  const double all = queries * problem.keys;
  const double pairs = problem.heads * (problem.causal ? all - queries * (queries - 1) / 2 : all);
  run.utilisation = pairs * (problem.head_dim + problem.value_dim) /
                    (static_cast<double>(run.cycles) * config.shape.rows * config.shape.columns);
  return run;
}

}  // namespace flashloom::systolic
