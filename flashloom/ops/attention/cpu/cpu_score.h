#pragma once

#include <cstdint>

#include "flashloom/ops/attention/cpu/attention_cpu_problem.h"

namespace flashloom {

/// What happens to q.k before the softmax, in the kernels' units: scores carry a factor of log2(e),
/// so that the exponential is one of base 2.
struct CpuScore {
  const AttentionOptions* options = nullptr;
  float scale = 1;        // of the contract
  float panel_scale = 1;  // factor that the panel's rows carry
  float softcap = 0;      // in base 2; the panel then holds score / softcap
  bool plain = true;      // nothing but the scale
  float dropout = 0;
  uint64_t seed = 0;
  uint64_t offset = 0;

  CpuScore() = default;
  CpuScore(const AttentionOptions& all, int64_t head_dim);
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
