#pragma once

#include <cstdint>

namespace flashloom {

/// Cosine decay with linear warm-up, as a factor of the peak learning rate for optimizer step
/// `step` (from 0) of `steps`: min(1, (step + 1) / warmup) (1 + cos(pi step / steps)) / 2. The last
/// step still trains: the factor reaches 0 only at step == steps. Throws InvalidArgument for steps
/// < 1, warmup < 0 or step outside [0, steps].
double cosine_schedule(int64_t step, int64_t steps, int64_t warmup);

}  // namespace flashloom
