#include "flashloom/ops/attention/cpu/cpu_score.h"

#include <cmath>
#include <numbers>

namespace flashloom {

namespace {

constexpr float kLeastRawScale = 1e-30f;  // far from where floats lose bits

}  // namespace

CpuScore::CpuScore(const AttentionOptions& all, int64_t head_dim, bool raw) : options(&all) {
  constexpr float kLog2E = std::numbers::log2e_v<float>;
  const AttentionScore& rule = all.score;
  scale = rule.scale != 0 ? rule.scale : 1 / std::sqrt(static_cast<float>(head_dim));
  softcap = rule.softcap * kLog2E;
  panel_scale = rule.softcap > 0 ? scale / rule.softcap : scale * kLog2E;
  plain = rule.softcap == 0 && !rule.alibi_slopes && !rule.bias;
  unit_natural = std::numbers::ln2_v<float>;
  // The greatest product is that of the greatest score, and hidden ones are -inf.
  if (raw && plain && scale > kLeastRawScale) {
    panel_scale = 1;
    unit = scale * kLog2E;
    unit_natural = scale;
  }
  dropout = all.dropout.probability;
  if (dropout > 0 && all.dropout.seed.data != nullptr) {
    seed = *static_cast<const uint64_t*>(all.dropout.seed.data);
    offset =
        all.dropout.offset ? *static_cast<const uint64_t*>(all.dropout.offset.data) : uint64_t{0};
  }
}

CpuHeadScore::CpuHeadScore(const CpuScore& score, int32_t sequence_index, int32_t head_index)
    : sequence(static_cast<uint32_t>(sequence_index)), head(static_cast<uint32_t>(head_index)) {
  const AttentionScore& rule = score.options->score;
  if (rule.alibi_slopes) {
    const ConstTensorView row = rule.alibi_slopes.rank == 2
                                    ? rule.alibi_slopes.select(0, sequence_index)
                                    : rule.alibi_slopes;
    alibi_slope = row.as<float>()[head_index * row.stride(0)] * std::numbers::log2e_v<float>;
  }
  if (rule.bias) {
    bias = rule.bias.select(0, rule.bias.dim(0) == 1 ? 0 : sequence_index);
    bias = bias.select(0, bias.dim(0) == 1 ? 0 : head_index);
  }
}

}  // namespace flashloom
