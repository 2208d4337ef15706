#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "flashloom/systolic/memory/main_memory.h"
#include "flashloom/systolic/program/attention_problem.h"

namespace flashloom::systolic {

/// Inputs of a problem as bits of elements.
struct AttentionData {
  std::vector<uint32_t> query;  // (heads, queries, head_dim)
  std::vector<uint32_t> key;    // (key_heads, keys, head_dim)
  std::vector<uint32_t> value;  // (key_heads, keys, value_dim)
};

enum class Distribution : uint8_t {
  normal,         // N(0, 1)
  outliers,       // N(0, 1), one number in a thousand plus N(0, 10^2)
  negative,       // keys against their queries: every score is below zero
  one_hot,        // one large element a row
  constant_keys,  // every key the same
  large_scores,   // |score| above 2048
  subnormal,      // a quarter of the numbers below the smallest normal one
  rising,         // keys grow along the sequence: the maximum moves in every tile
};
inline constexpr int kDistributionCount = 8;
std::string_view distribution_name(Distribution distribution);
/// Throws InvalidArgument.
Distribution parse_distribution(std::string_view name);

/// Seeded; independent for queries, keys and values.
AttentionData random_inputs(const MachineConfig& config, const AttentionProblem& problem,
                            Distribution distribution, uint64_t seed);

/// Writes the inputs where layout_of() says; the padding is zero.
void place_inputs(const MachineConfig& config, const AttentionProblem& problem,
                  const AttentionData& data, MainMemory& memory);

/// One row of the output, (value_dim).
std::vector<double> read_output(const MachineConfig& config, const AttentionProblem& problem,
                                const MainMemory& memory, int head, int query);

/// The same rows in float64 from the same inputs: softmax(scale · q k) v; the oracle of reports. A
/// test holds it to ops/attention's reference.
class AttentionReference {
 public:
  AttentionReference(const MachineConfig& config, const AttentionProblem& problem,
                     const AttentionData& data);

  std::vector<double> row(int head, int query) const;

 private:
  AttentionProblem problem_;
  double scale_;
  std::vector<double> query_;  // as AttentionData
  std::vector<double> key_;
  std::vector<double> value_;
};

}  // namespace flashloom::systolic
