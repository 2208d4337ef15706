#pragma once

#include <cstdint>

namespace flashloom {

/// What is kept of a stretch of a row of logits: sum of exp(z - maximum), and of z.
struct LogitStatistics {
  float maximum;
  float exp_sum;
  float sum;
};

/// Caps the logits in place (softcap 0: not), then measures them. A NaN makes exp_sum NaN. If all
/// are -infinity, exp_sum is 0.
LogitStatistics logit_statistics(float* logits, int64_t count, float softcap);

/// Replaces capped logits z by gradients of what was capped:
/// (factor exp(z - maximum) - constant) (1 - (z / softcap)^2).
void logit_gradients(float* logits, int64_t count, float maximum, float factor, float constant,
                     float softcap);

}  // namespace flashloom
