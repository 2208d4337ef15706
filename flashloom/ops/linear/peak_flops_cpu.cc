#include <time.h>

#include <algorithm>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/linear/peak_flops.h"

// foreach_target.h compiles this file once a target; it must come before Highway's other headers.
// clang-format off
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "flashloom/ops/linear/peak_flops_cpu.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// clang-format on

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// Independent sums: two units of a latency of four or five cycles need ten; the registers of AVX2
// have room for 14 beside the factor and the term.
constexpr int kSums = 12;

// Multiplies and adds `steps` times in each lane of kSums vectors. Returns the operations; what is
// computed goes to `sink`, so that it cannot be left out.
double multiply_and_add(int steps, float* sink) {
  const hn::ScalableTag<float> d;
  const auto factor = hn::Set(d, 0.5f);
  const auto term = hn::Set(d, 1.0f);
  hn::Vec<decltype(d)> sums[kSums];
  for (auto& sum : sums) {
    sum = term;
  }
  for (int step = 0; step < steps; ++step) {
#pragma GCC unroll 12
    for (auto& sum : sums) {
      sum = hn::MulAdd(sum, factor, term);
    }
  }
  auto total = hn::Zero(d);
  for (const auto& sum : sums) {
    total = hn::Add(total, sum);
  }
  *sink += hn::GetLane(hn::SumOfLanes(d, total));
  return 2.0 * kSums * static_cast<double>(hn::Lanes(d)) * steps;
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashloom {

HWY_EXPORT(multiply_and_add);

namespace {

double thread_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

}  // namespace

double measure_peak_flops() {
  constexpr int kSteps = 100'000;  // some 0.2 ms: reading the clock is a thousandth of it
  constexpr double kSeconds = 0.02;
  volatile float kept = 0;
  float sink = 0;
  double best = 0;
  const double first = thread_seconds();
  for (double now = first; now < first + kSeconds;) {
    const double operations = HWY_DYNAMIC_DISPATCH(multiply_and_add)(kSteps, &sink);
    const double end = thread_seconds();
    best = std::max(best, operations / (end - now));
    now = end;
  }
  kept = sink;
  static_cast<void>(kept);
  return best * thread_count();
}

}  // namespace flashloom
#endif  // HWY_ONCE
