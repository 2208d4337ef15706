#pragma once

#include <cstdint>
#include <string_view>

namespace flashloom {

/// How the learning rate falls over a run.
enum class ScheduleKind : uint8_t {
  cosine,    ///< (1 + cos(pi step / steps)) / 2
  linear,    ///< 1 - step / steps
  wsd,       ///< warm-up, stable, decay: 1, then linear to 0 over the last steps (Hu et al. 2024)
  constant,  ///< 1
};

ScheduleKind parse_schedule(std::string_view name);
std::string_view schedule_name(ScheduleKind kind);

struct ScheduleOptions {
  ScheduleKind kind = ScheduleKind::cosine;
  int64_t warmup = 0;  // steps of rising rate
  double minimum = 0;  // what the fall ends in, as a share of the peak
  double decay = 0.2;  // WSD: share of the steps that fall (Hägele et al. 2024: 0.2 loses nothing)
};

/// Factor of the peak learning rate in optimizer step `step` (from 0) of `steps`:
/// min(1, (step + 1) / warmup) (minimum + (1 - minimum) fall), with the falls above; WSD's is
/// min(1, (steps - step) / D), D = max(1, round(decay steps)). The last step still trains: a fall
/// reaches 0 only at step == steps.
/// Throws InvalidArgument for steps < 1, warmup < 0, step outside [0, steps], a minimum or decay
/// outside [0, 1].
double schedule_factor(const ScheduleOptions& options, int64_t step, int64_t steps);

}  // namespace flashloom
