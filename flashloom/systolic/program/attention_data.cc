#include "flashloom/systolic/program/attention_data.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "flashloom/core/error.h"
#include "flashloom/core/philox.h"
#include "flashloom/systolic/numeric/exp2.h"

namespace flashloom::systolic {
namespace {

constexpr std::string_view kNames[] = {"normal",        "outliers",     "negative",  "one_hot",
                                       "constant_keys", "large_scores", "subnormal", "rising"};
static_assert(std::size(kNames) == kDistributionCount);

// Column of a group in which a head's query stands.
struct Place {
  int group;
  int column;
};

Place place_of(const AttentionProblem& problem, const AttentionTiling& tiling, int head,
               int query) {
  if (!tiling.packed) {
    return {head, tiling.lead + query};
  }
  const int per_group = problem.heads / problem.key_heads;
  return {head / per_group, head % per_group * problem.queries + query};
}

class Source {
 public:
  Source(FloatFormat format, Distribution distribution, uint64_t seed)
      : format_(format), distribution_(distribution), random_(seed, RandomStream::test) {}

  std::vector<uint32_t> queries(int rows, int dim) {
    return fill(rows, dim, [&](int, int d) { return number(d); });
  }

  // `sequence`: rows of a head, for what changes along it.
  std::vector<uint32_t> keys(int rows, int dim, int sequence) {
    if (distribution_ == Distribution::constant_keys) {
      std::vector<double> row(static_cast<size_t>(dim));
      std::ranges::generate(row, [&] { return random_.normal(); });
      return fill(rows, dim, [&](int, int d) { return row[static_cast<size_t>(d)]; });
    }
    return fill(rows, dim, [&](int r, int d) {
      const double value = number(d);
      return distribution_ == Distribution::negative ? -0.3 * std::abs(value)
             : distribution_ == Distribution::rising
                 ? std::abs(value) * (1 + 8.0 * (r % sequence) / sequence)
                 : value;
    });
  }

  std::vector<uint32_t> values(int rows, int dim) {
    return fill(rows, dim, [&](int, int) {
      return distribution_ == Distribution::outliers ? outlier() : random_.normal();
    });
  }

 private:
  template <class Number>
  std::vector<uint32_t> fill(int rows, int dim, const Number& make) {
    std::vector<uint32_t> bits;
    bits.reserve(static_cast<size_t>(rows) * dim);
    for (int r = 0; r < rows; ++r) {
      hot_ = static_cast<int>(random_.below(static_cast<uint32_t>(dim)));
      for (int d = 0; d < dim; ++d) {
        bits.push_back(round_double(format_, make(r, d)));
        if (distribution_ == Distribution::subnormal && random_.below(4) == 0) {
          bits.back() = random_.bits() & (format_.sign_bit() | format_.fraction_mask());
        }
      }
    }
    return bits;
  }

  double outlier() {
    const double value = random_.normal();
    return random_.below(1000) == 0 ? value + 10.0 * random_.normal() : value;
  }

  double number(int d) {
    switch (distribution_) {
      case Distribution::outliers:
        return outlier();
      case Distribution::negative:
      case Distribution::rising:
        return std::abs(random_.normal());
      case Distribution::one_hot:
        return d == hot_ ? 8.0 : 0.0;
      case Distribution::large_scores:
        return 16.0 * random_.normal();
      default:
        return random_.normal();
    }
  }

  FloatFormat format_;
  Distribution distribution_;
  RandomSequence random_;
  int hot_ = 0;
};

}  // namespace

std::string_view distribution_name(Distribution distribution) {
  return kNames[static_cast<size_t>(distribution)];
}

Distribution parse_distribution(std::string_view name) {
  const auto* const found = std::ranges::find(kNames, name);
  if (found == std::end(kNames)) {
    std::string all;
    for (const std::string_view known : kNames) {
      all += fmt::format("{}{}", all.empty() ? "" : ", ", known);
    }
    throw InvalidArgument("systolic", "distribution", all, name);
  }
  return static_cast<Distribution>(found - std::begin(kNames));
}

AttentionData random_data(const MachineConfig& config, const AttentionProblem& problem,
                          Distribution distribution, uint64_t seed) {
  Source source(config.formats.element, distribution, seed);
  AttentionData data;
  data.query = source.queries(problem.heads * problem.queries, problem.head_dim);
  data.key = source.keys(problem.key_heads * problem.keys, problem.head_dim, problem.keys);
  data.value = source.values(problem.key_heads * problem.keys, problem.value_dim);
  return data;
}

void place_inputs(const MachineConfig& config, const AttentionProblem& problem,
                  const AttentionData& data, MainMemory& memory) {
  const AttentionTiling tiling = tiling_of(config, problem);
  const AttentionLayout layout = layout_of(config, problem);
  const FloatFormat format = config.formats.element;
  const int64_t bytes = format.width() / 8;
  const int64_t row_bytes = config.spad_row_bytes();
  size_t next = 0;
  for (int head = 0; head < problem.heads; ++head) {
    for (int query = 0; query < problem.queries; ++query) {
      const Place place = place_of(problem, tiling, head, query);
      const int64_t row =
          layout.query + place.group * layout.query_group_bytes + place.column * row_bytes;
      for (int d = 0; d < problem.head_dim; ++d) {
        memory.store(format, row + d * bytes, data.query[next++]);
      }
    }
  }
  next = 0;
  size_t next_value = 0;
  for (int head = 0; head < problem.key_heads; ++head) {
    for (int key = 0; key < problem.keys; ++key) {
      const int64_t row = layout.key + head * layout.key_group_bytes + key * row_bytes;
      for (int d = 0; d < problem.head_dim; ++d) {
        memory.store(format, row + d * bytes, data.key[next++]);
      }
      const int64_t column = layout.value + head * layout.value_group_bytes + key * bytes;
      for (int e = 0; e < problem.value_dim; ++e) {
        memory.store(format, column + e * layout.value_stride, data.value[next_value++]);
      }
    }
  }
}

std::vector<double> read_output(const MachineConfig& config, const AttentionProblem& problem,
                                const MainMemory& memory, int head, int query) {
  const AttentionTiling tiling = tiling_of(config, problem);
  const AttentionLayout layout = layout_of(config, problem);
  const FloatFormat format = config.formats.accumulator;
  const Place place = place_of(problem, tiling, head, query);
  const int64_t column =
      layout.output + place.group * layout.output_group_bytes + place.column * (format.width() / 8);
  std::vector<double> row;
  for (int e = 0; e < problem.value_dim; ++e) {
    row.push_back(to_double(format, memory.load(format, column + e * layout.output_stride)));
  }
  return row;
}

std::vector<double> reference_row(const MachineConfig& config, const AttentionProblem& problem,
                                  const AttentionData& data, int head, int query) {
  const FloatFormat format = config.formats.element;
  const int key_head = head / (problem.heads / problem.key_heads);
  const int visible = problem.causal ? query + problem.keys - problem.queries + 1 : problem.keys;
  const auto dim = static_cast<size_t>(problem.head_dim);
  const auto value_dim = static_cast<size_t>(problem.value_dim);
  std::vector<double> q(dim);
  const size_t q_row = (static_cast<size_t>(head) * problem.queries + query) * dim;
  for (size_t d = 0; d < dim; ++d) {
    q[d] = to_double(format, data.query[q_row + d]);
  }
  std::vector<double> scores(static_cast<size_t>(visible));
  double maximum = -std::numeric_limits<double>::infinity();
  const size_t first = static_cast<size_t>(key_head) * problem.keys;
  for (size_t j = 0; j < scores.size(); ++j) {
    for (size_t d = 0; d < dim; ++d) {
      scores[j] += q[d] * to_double(format, data.key[(first + j) * dim + d]);
    }
    scores[j] *= config.scale();
    maximum = std::max(maximum, scores[j]);
  }
  double sum = 0;
  std::vector<double> row(value_dim);
  for (size_t j = 0; j < scores.size(); ++j) {
    const double p = std::exp(scores[j] - maximum);
    sum += p;
    for (size_t e = 0; e < value_dim; ++e) {
      row[e] += p * to_double(format, data.value[(first + j) * value_dim + e]);
    }
  }
  for (double& number : row) {
    number /= sum;
  }
  return row;
}

}  // namespace flashloom::systolic
