#include "flashloom/systolic/plan/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <string>
#include <vector>

namespace flashloom::systolic {
namespace {

using namespace plan_detail;
using enum Signal;
using enum Wave;

constexpr CycleForm kZero{};

// S cycles a hop. Score: the sum of key j leaves row 0 in SR + j; comparators see it one later, and
// its rounding marches back down, until in kSettled the last key's is above row 0: each key then
// stands above its row. Every step of the softmax reads a register that the step before wrote S
// cycles earlier.
constexpr CycleForm kSettled = SR + R + 1;
constexpr CycleForm kShift = kSettled + 1;      // x - m
constexpr CycleForm kScale = kShift + S;        // times the scale
constexpr CycleForm kPower = kScale + S;        // exp2, P cycles
constexpr CycleForm kSum = kPower + S + P - 1;  // the row's sum, when the last piece is written
// What enters row 0 in a cycle reaches the accumulators below after all rows and columns.
constexpr CycleForm kDown = SR + C - 1;

// Rows of d_in are zeroed by a wave that follows the scores (flow_du); it must have passed row r
// when the scale's multiplication, the only later user of d_in, comes down at kScale + S r: row 0
// sees it just then.
constexpr CycleForm kZeroing = kScale - SR + S;

constexpr Window kWindows[] = {
    {Function::load_stationary, spad_read, none, kZero, C - 1},
    {Function::load_stationary, load_reg_li, parallel, kZero + 1, C},

    {Function::score, spad_read, none, kZero, R - 1},
    {Function::score, mac, up, kZero + 1, R},
    {Function::score, flow_lr, up, kZero + 1, R},
    {Function::score, compare_update, none, SR + 1, SR + R},
    {Function::score, flow_ud, down, SR + 1, SR + R},
    {Function::score, flow_du, up, kZeroing, kZeroing + R - 1},
    {Function::score, load_reg_ui, settling, kSettled, kSettled},
    // x - m: the maximum comes down, 1.0 from the left.
    {Function::score, compare_send_max, none, kShift - 1, kShift - 1},
    {Function::score, constant_one, none, kShift - 1, kShift - 1},
    {Function::score, update_reg, down, kShift, kShift},
    {Function::score, acc_ui, down, kShift, kShift},
    {Function::score, flow_ud, down, kShift, kShift},
    {Function::score, flow_lr, down, kShift, kShift},
    // times the scale; the step of the maximum rides down to the accumulators.
    {Function::score, compare_send_difference, none, kScale - 1, kScale - 1},
    {Function::score, constant_scale, none, kScale - 1, kScale - 1},
    {Function::score, update_reg, down, kScale, kScale},
    {Function::score, flow_ud, down, kScale, kScale},
    {Function::score, flow_lr, down, kScale, kScale},
    // exp2: slopes from the left, intercepts from above.
    {Function::score, compare_send_intercepts, none, kPower - 1, kPower + P - 2},
    {Function::score, constant_slopes, none, kPower - 1, kPower + P - 2},
    {Function::score, exp2, down, kPower, kPower + P - 1},
    {Function::score, acc_ui, down, kPower, kPower + P - 1},
    {Function::score, flow_ud, down, kPower, kPower + P - 1},
    {Function::score, flow_lr, down, kPower, kPower + P - 1},
    // The row's sum.
    {Function::score, compare_send_zero, none, kSum - 1, kSum - 1},
    {Function::score, constant_one, none, kSum - 1, kSum - 1},
    {Function::score, mac, down, kSum, kSum},
    {Function::score, acc_ui, down, kSum, kSum},
    {Function::score, flow_lr, down, kSum, kSum},
    {Function::score, accumulate_exp_s1, none, kScale + kDown, kScale + kDown},
    {Function::score, accumulate_exp_s2, none, kScale + kDown + 1, kScale + kDown + 1},
    {Function::score, accumulator_read, none, kSum + kDown - 1, kSum + kDown - 1},
    {Function::score, accumulate_sum, none, kSum + kDown, kSum + kDown},

    {Function::value, spad_read, none, kZero, R - 1},
    {Function::value, mac, down, kZero + 1, R},
    {Function::value, acc_ui, down, kZero + 1, R},
    {Function::value, flow_lr, down, kZero + 1, R},
    {Function::value, accumulator_read, none, kDown, kDown + R - 1},
    {Function::value, accumulate_sum, none, kDown + 1, kDown + R},

    {Function::lse_norm_scale, accumulator_read, none, kZero, kZero},
    {Function::lse_norm_scale, accumulate_set_scale, none, kZero + 1, kZero + 1},
    {Function::lse_norm_scale, accumulate_reciprocal, none, kZero + 2, L + 1},

    {Function::lse_norm, compare_reset, none, kZero, kZero},
    {Function::lse_norm, accumulator_read, none, kZero, R - 1},
    {Function::lse_norm, accumulate_scale, none, kZero + 1, R},
};

// In the place of load_stationary's and beside score's, where there is a shadow register. Values
// use row R - 1's register up to the cycle before a score's timer 0 (conflict_free), keys from
// timer 1 on.
constexpr Window kShadowWindows[] = {
    {Function::load_stationary, shadow_read, none, kZero, C - 1},
    {Function::load_stationary, load_shadow, parallel, kZero + 1, C},
    {Function::score, copy_shadow, parallel, kZero, kZero},
};

// A load of shadow registers may start as soon as nobody reads the scratchpad (release), and has
// written the last register before a score copies it.
constexpr FunctionTiming kTimings[] = {
    {Function::load_stationary, C - 1 + kShadow, C - 1, C + 1},
    {Function::score, kSum - 1, R - 1, kSum + kDown + 1},
    {Function::value, SR + R - S - 1, R - 1, kDown + R + 1},
    {Function::lse_norm_scale, L + 1, L + 1, L + 2},
    {Function::lse_norm, R, R, R + 1},
};

constexpr std::string_view kFunctionNames[] = {"load_stationary", "score",    "value",
                                               "lse_norm_scale",  "lse_norm", "score_limit"};
static_assert(std::size(kFunctionNames) == kFunctionCount);

constexpr std::string_view kSignalNames[] = {"spad_read",
                                             "constant_one",
                                             "constant_scale",
                                             "constant_slopes",
                                             "mac",
                                             "acc_ui",
                                             "load_reg_li",
                                             "load_reg_ui",
                                             "flow_lr",
                                             "flow_ud",
                                             "flow_du",
                                             "update_reg",
                                             "exp2",
                                             "compare_update",
                                             "compare_send_max",
                                             "compare_send_difference",
                                             "compare_send_zero",
                                             "compare_send_intercepts",
                                             "compare_reset",
                                             "accumulator_read",
                                             "accumulate_exp_s1",
                                             "accumulate_exp_s2",
                                             "accumulate_sum",
                                             "accumulate_scale",
                                             "accumulate_set_scale",
                                             "accumulate_reciprocal",
                                             "shadow_read",
                                             "load_shadow",
                                             "copy_shadow"};
static_assert(std::size(kSignalNames) == kSignalCountWithShadow);

std::vector<Window> windows_with_shadow() {
  std::vector<Window> windows(std::begin(kShadowWindows), std::end(kShadowWindows));
  std::ranges::copy_if(kWindows, std::back_inserter(windows), [](const Window& window) {
    return window.function != Function::load_stationary;
  });
  return windows;
}

}  // namespace

std::string describe(const CycleForm& form) {
  std::string text;
  const auto add = [&](int factor, std::string_view name) {
    if (factor != 0) {
      const std::string_view sign =
          factor < 0 ? (text.empty() ? "-" : " - ") : (text.empty() ? "" : " + ");
      text += sign;
      if (name.empty()) {
        text += fmt::format("{}", std::abs(factor));
      } else {
        text += std::abs(factor) == 1 ? std::string(name)
                                      : fmt::format("{}*{}", std::abs(factor), name);
      }
    }
  };
  add(form.depth_rows, "S*R");
  add(form.rows, "R");
  add(form.columns, "C");
  add(form.pieces, "P");
  add(form.divider_latency, "L");
  add(form.depth, "S");
  add(form.shadow, "shadow");
  add(form.constant, "");
  return text.empty() ? "0" : text;
}

std::span<const Window> plan_windows(bool shadow) {
  static const std::vector<Window> with_shadow = windows_with_shadow();
  return shadow ? std::span<const Window>(with_shadow) : kWindows;
}

std::span<const FunctionTiming> plan_timings() {
  return kTimings;
}

const FunctionTiming& plan_timing(Function function) {
  return kTimings[static_cast<size_t>(planned_as(function))];
}

std::string_view function_name(Function function) {
  return kFunctionNames[static_cast<size_t>(function)];
}

std::string_view signal_name(Signal signal) {
  return kSignalNames[static_cast<size_t>(signal)];
}

std::vector<int> start_cycles(const ArrayShape& shape, int slots,
                              std::span<const Function> functions) {
  std::vector<int> starts;
  std::vector<int> slot_free(static_cast<size_t>(slots));  // first timer 0 of the next there
  size_t slot = 0;
  int array_free = 0;  // as the two below
  int load_free = 0;   // of the shadow registers, which have a slot of their own
  int spad_free = 0;
  for (const Function function : functions) {
    const FunctionTiming& timing = plan_timing(function);
    const bool beside = shape.shadow && function == Function::load_stationary;
    int& own = beside ? load_free : slot_free[slot];
    const int earliest = std::max(own, beside ? spad_free : array_free);
    const int start = starts.empty() ? 0 : std::max(earliest, starts.back() + 1);
    starts.push_back(start);
    own = start + timing.busy.at(shape) + 1;
    array_free = std::max(array_free, start + timing.conflict_free.at(shape) + 1);
    if (reads_spad(function)) {
      spad_free = start + timing.release.at(shape) + 1;
    }
    slot = beside ? slot : (slot + 1) % slot_free.size();
  }
  return starts;
}

int iteration_period(const ArrayShape& shape, int slots, int values) {
  constexpr int kIterations = 12;  // the steady state is reached after one
  std::vector<Function> functions;
  int length = 0;
  for (int i = 0; i < kIterations; ++i) {
    const size_t before = functions.size();
    if (i == 0 || !shape.shadow) {
      functions.push_back(Function::load_stationary);
    }
    functions.push_back(Function::score);
    functions.insert(functions.end(), static_cast<size_t>(values), Function::value);
    length = static_cast<int>(functions.size() - before);
  }
  const std::vector<int> starts = start_cycles(shape, slots, functions);
  return starts.back() - starts[starts.size() - 1 - static_cast<size_t>(length)];
}

int isolated_tile(const ArrayShape& shape) {
  const int load = plan_timing(Function::load_stationary).conflict_free.at(shape) + 1;
  const int score = plan_timing(Function::score).conflict_free.at(shape) + 1;
  const int value = plan_timing(Function::value).busy.at(shape) + 1;
  const int scale = plan_timing(Function::lse_norm_scale).busy.at(shape) + 1;
  return load + score + value + scale + plan_timing(Function::lse_norm).busy.at(shape);
}

}  // namespace flashloom::systolic
