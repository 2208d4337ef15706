#include "flashloom/systolic/program/attention_data.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "flashloom/core/error.h"
#include "flashloom/core/parallel.h"
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

// Inputs of one tensor. Each row has random numbers of its own, so rows are made in parallel.
class Source {
 public:
  Source(FloatFormat format, Distribution distribution, uint64_t seed)
      : format_(format), distribution_(distribution), seed_(seed) {}

  // `sequence`: rows of a head, for what changes along it.
  std::vector<uint32_t> queries(int rows, int dim) const {
    return fill(rows, dim, [&](Row& row, int) { return number(row); });
  }

  std::vector<uint32_t> keys(int rows, int dim, int sequence) const {
    return fill(rows, dim, [&](Row& row, int r) {
      const double value = number(row);
      switch (distribution_) {
        case Distribution::negative:
          return -0.3 * value;
        case Distribution::rising:
          return value * (1 + 8.0 * (r % sequence) / sequence);
        default:
          return value;
      }
    });
  }

  std::vector<uint32_t> values(int rows, int dim) const {
    return fill(rows, dim, [&](Row& row, int) {
      return distribution_ == Distribution::outliers ? outlier(row.random) : row.random.normal();
    });
  }

 private:
  struct Row {
    RandomSequence random;
    int hot;
    int d = 0;
  };

  // Draws of a number: two for a normal, one for the choice, two for an outlier, two for
  // subnormals.
  static constexpr uint64_t kDraws = 8;

  template <class Number>
  std::vector<uint32_t> fill(int rows, int dim, const Number& make) const {
    std::vector<uint32_t> bits(static_cast<size_t>(rows) * dim);
    parallel_for(rows, [&](int64_t r) {
      const auto source = static_cast<uint64_t>(r) * (dim + 1) * kDraws;
      Row row{.random = RandomSequence(seed_, RandomStream::test, source)};
      row.hot = static_cast<int>(row.random.below(static_cast<uint32_t>(dim)));
      for (row.d = 0; row.d < dim; ++row.d) {
        uint32_t& to = bits[static_cast<size_t>(r * dim + row.d)];
        to = round_double(format_, make(row, static_cast<int>(r)));
        if (distribution_ == Distribution::subnormal && row.random.below(4) == 0) {
          to = row.random.bits() & (format_.sign_bit() | format_.fraction_mask());
        }
      }
    });
    return bits;
  }

  static double outlier(RandomSequence& random) {
    const double value = random.normal();
    return random.below(1000) == 0 ? value + 10.0 * random.normal() : value;
  }

  double number(Row& row) const {
    switch (distribution_) {
      case Distribution::outliers:
        return outlier(row.random);
      case Distribution::negative:
      case Distribution::rising:
        return std::abs(row.random.normal());
      case Distribution::one_hot:
        return row.d == row.hot ? 8.0 : 0.0;
      case Distribution::large_scores:
        return 16.0 * row.random.normal();
      default:
        return row.random.normal();
    }
  }

  FloatFormat format_;
  Distribution distribution_;
  uint64_t seed_;
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

AttentionData random_inputs(const MachineConfig& config, const AttentionProblem& problem,
                            Distribution distribution, uint64_t seed) {
  const auto source = [&](uint64_t tensor) {
    return Source(config.formats.element, distribution, 3 * seed + tensor);
  };
  AttentionData data;
  data.query = source(0).queries(problem.heads * problem.queries, problem.head_dim);
  data.key = source(1).keys(problem.key_heads * problem.keys, problem.head_dim, problem.keys);
  data.value = source(2).values(problem.key_heads * problem.keys, problem.value_dim);
  if (distribution == Distribution::constant_keys) {
    const auto dim = static_cast<size_t>(problem.head_dim);
    for (size_t i = dim; i < data.key.size(); ++i) {
      data.key[i] = data.key[i - dim];
    }
  }
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
  row.reserve(static_cast<size_t>(problem.value_dim));
  for (int e = 0; e < problem.value_dim; ++e) {
    row.push_back(to_double(format, memory.load(format, column + e * layout.output_stride)));
  }
  return row;
}

namespace {

std::vector<double> doubles(FloatFormat format, const std::vector<uint32_t>& bits) {
  std::vector<double> numbers(bits.size());
  for (size_t i = 0; i < bits.size(); ++i) {
    numbers[i] = to_double(format, bits[i]);
  }
  return numbers;
}

}  // namespace

AttentionReference::AttentionReference(const MachineConfig& config, const AttentionProblem& problem,
                                       const AttentionData& data)
    : problem_(problem),
      scale_(config.scale()),
      query_(doubles(config.formats.element, data.query)),
      key_(doubles(config.formats.element, data.key)),
      value_(doubles(config.formats.element, data.value)) {}

std::vector<double> AttentionReference::row(int head, int query) const {
  const int key_head = head / (problem_.heads / problem_.key_heads);
  const int visible =
      problem_.causal ? query + problem_.keys - problem_.queries + 1 : problem_.keys;
  const auto dim = static_cast<size_t>(problem_.head_dim);
  const auto value_dim = static_cast<size_t>(problem_.value_dim);
  const size_t first = static_cast<size_t>(key_head) * problem_.keys;
  const double* q = query_.data() + (static_cast<size_t>(head) * problem_.queries + query) * dim;
  std::vector<double> scores(static_cast<size_t>(visible));
  double maximum = -std::numeric_limits<double>::infinity();
  for (size_t j = 0; j < scores.size(); ++j) {
    const double* k = key_.data() + (first + j) * dim;
    for (size_t d = 0; d < dim; ++d) {
      scores[j] += q[d] * k[d];
    }
    scores[j] *= scale_;
    maximum = std::max(maximum, scores[j]);
  }
  double sum = 0;
  std::vector<double> row(value_dim);
  for (size_t j = 0; j < scores.size(); ++j) {
    const double p = std::exp(scores[j] - maximum);
    const double* v = value_.data() + (first + j) * value_dim;
    sum += p;
    for (size_t e = 0; e < value_dim; ++e) {
      row[e] += p * v[e];
    }
  }
  for (double& number : row) {
    number /= sum;
  }
  return row;
}

}  // namespace flashloom::systolic
