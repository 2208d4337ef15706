#pragma once

#include <cstdint>

#include "flashloom/ops/attention/cpu/attention_cpu_problem.h"

namespace flashloom {

/// What happens to q.k before the softmax, in the kernels' units.
///
/// Where nothing but the scale does, scores are raw products, and only their difference from a
/// row's maximum or lse is multiplied, in one fused step: a score of some hundreds that is rounded
/// after the scale and again as the lse goes to base 2 loses 2^-16 each time. Other scores carry
/// the scale and a factor of log2(e).
struct CpuScore {
  const AttentionOptions* options = nullptr;
  float scale = 1;         // of the contract
  float panel_scale = 1;   // factor that the panel's rows carry
  float unit = 1;          // what scores are multiplied by to be in base 2,
  float unit_natural = 1;  // and natural
  float softcap = 0;       // in base 2; the panel then holds score / softcap
  bool plain = true;       // nothing but the scale
  float dropout = 0;
  uint64_t seed = 0;
  uint64_t offset = 0;

  CpuScore() = default;
  /// `raw`: scores may be raw products.
  CpuScore(const AttentionOptions& all, int64_t head_dim, bool raw);
};

/// The score rule of one (sequence, head).
struct CpuHeadScore {
  float alibi_slope = 0;      // in base 2
  ConstTensorView bias = {};  // (S_q or 1, S_k)
  uint32_t sequence = 0;
  uint32_t head = 0;

  CpuHeadScore(const CpuScore& score, int32_t sequence_index, int32_t head_index);
};

}  // namespace flashloom
