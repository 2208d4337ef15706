#pragma once

#include <cstdint>

namespace flashloom {

/// What is kept of a stretch of a row of logits: sum of exp(z - maximum), and of z.
struct LogitStatistics {
  float maximum;
  float exp_sum;
  float sum;
};

/// z becomes softcap tanh(z / softcap).
void cap_logits(float* logits, int64_t count, float softcap);

/// NaN may be overlooked.
float logit_maximum(const float* logits, int64_t count);

/// A NaN makes exp_sum NaN. If all are -infinity, exp_sum is 0.
LogitStatistics logit_statistics(const float* logits, int64_t count);

/// Replaces capped logits by exp(z - maximum) (1 - (z / softcap)^2), the second factor only with a
/// softcap; returns the sum of the first.
float exponentiate_logits(float* logits, int64_t count, float maximum, float softcap);

/// Replaces capped logits z by gradients of what was capped:
/// (factor exp(z - maximum) - constant) (1 - (z / softcap)^2).
void logit_gradients(float* logits, int64_t count, float maximum, float factor, float constant,
                     float softcap);

}  // namespace flashloom
