#include "flashloom/systolic/plan/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <utility>

namespace flashloom::systolic {
namespace {

using namespace plan_detail;
using enum Signal;
using enum Wave;

constexpr CycleForm kZero{};

// Rows of d_in are zeroed by a wave that follows the scores (flow_du); it must have passed row r
// when the scale's multiplication, the only later user of d_in, comes down at 2R + 3 + r.
constexpr Window kWindows[] = {
    {Function::load_stationary, spad_read, none, kZero, C - 1},
    {Function::load_stationary, load_reg_li, parallel, kZero + 1, C},

    {Function::score, spad_read, none, kZero, R - 1},
    {Function::score, mac, up, kZero + 1, R},
    {Function::score, flow_lr, up, kZero + 1, R},
    {Function::score, compare_update, none, R + 1, 2 * R},
    {Function::score, flow_ud, down, R + 1, 2 * R},
    {Function::score, flow_du, up, R + 4, 2 * R + 3},
    {Function::score, load_reg_ui, parallel, 2 * R + 1, 2 * R + 1},
    // x - m: the maximum comes down, 1.0 from the left.
    {Function::score, compare_send_max, none, 2 * R + 1, 2 * R + 1},
    {Function::score, constant_one, none, 2 * R + 1, 2 * R + 1},
    {Function::score, update_reg, down, 2 * R + 2, 2 * R + 2},
    {Function::score, acc_ui, down, 2 * R + 2, 2 * R + 2},
    {Function::score, flow_ud, down, 2 * R + 2, 2 * R + 2},
    {Function::score, flow_lr, down, 2 * R + 2, 2 * R + 2},
    // times the scale; the step of the maximum rides down to the accumulators.
    {Function::score, compare_send_difference, none, 2 * R + 2, 2 * R + 2},
    {Function::score, constant_scale, none, 2 * R + 2, 2 * R + 2},
    {Function::score, update_reg, down, 2 * R + 3, 2 * R + 3},
    {Function::score, flow_ud, down, 2 * R + 3, 2 * R + 3},
    {Function::score, flow_lr, down, 2 * R + 3, 2 * R + 3},
    // exp2: slopes from the left, intercepts from above.
    {Function::score, compare_send_intercepts, none, 2 * R + 3, 2 * R + P + 2},
    {Function::score, constant_slopes, none, 2 * R + 3, 2 * R + P + 2},
    {Function::score, exp2, down, 2 * R + 4, 2 * R + P + 3},
    {Function::score, acc_ui, down, 2 * R + 4, 2 * R + P + 3},
    {Function::score, flow_ud, down, 2 * R + 4, 2 * R + P + 3},
    {Function::score, flow_lr, down, 2 * R + 4, 2 * R + P + 3},
    // The row's sum.
    {Function::score, compare_send_zero, none, 2 * R + P + 3, 2 * R + P + 3},
    {Function::score, constant_one, none, 2 * R + P + 3, 2 * R + P + 3},
    {Function::score, mac, down, 2 * R + P + 4, 2 * R + P + 4},
    {Function::score, acc_ui, down, 2 * R + P + 4, 2 * R + P + 4},
    {Function::score, flow_lr, down, 2 * R + P + 4, 2 * R + P + 4},
    {Function::score, accumulate_exp_s1, none, 3 * R + C + 2, 3 * R + C + 2},
    {Function::score, accumulate_exp_s2, none, 3 * R + C + 3, 3 * R + C + 3},
    {Function::score, accumulator_read, none, 3 * R + C + P + 2, 3 * R + C + P + 2},
    {Function::score, accumulate_sum, none, 3 * R + C + P + 3, 3 * R + C + P + 3},

    {Function::value, spad_read, none, kZero, R - 1},
    {Function::value, mac, down, kZero + 1, R},
    {Function::value, acc_ui, down, kZero + 1, R},
    {Function::value, flow_lr, down, kZero + 1, R},
    {Function::value, accumulator_read, none, R + C - 1, 2 * R + C - 2},
    {Function::value, accumulate_sum, none, R + C, 2 * R + C - 1},

    {Function::lse_norm_scale, accumulator_read, none, kZero, kZero},
    {Function::lse_norm_scale, accumulate_set_scale, none, kZero + 1, kZero + 1},
    {Function::lse_norm_scale, accumulate_reciprocal, none, kZero + 2, L + 1},

    {Function::lse_norm, compare_reset, none, kZero, kZero},
    {Function::lse_norm, accumulator_read, none, kZero, R - 1},
    {Function::lse_norm, accumulate_scale, none, kZero + 1, R},
};

constexpr FunctionTiming kTimings[] = {
    {Function::load_stationary, C - 1, C - 1, C + 1},
    {Function::score, 2 * R + P + 3, R - 1, 3 * R + C + P + 4},
    {Function::value, 2 * R - 2, R - 1, 2 * R + C},
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
                                             "accumulate_reciprocal"};
static_assert(std::size(kSignalNames) == kSignalCount);

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
  add(form.rows, "R");
  add(form.columns, "C");
  add(form.pieces, "P");
  add(form.divider_latency, "L");
  add(form.constant, "");
  return text.empty() ? "0" : text;
}

std::span<const Window> plan_windows() {
  return kWindows;
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

int iteration_period(const ArrayShape& shape, int slots) {
  // Earliest distance of two timers by conflict_free alone; then by the slot that is entered, which
  // is the one of the instruction `slots` before.
  const auto& load = plan_timing(Function::load_stationary);
  const auto& score = plan_timing(Function::score);
  const auto& value = plan_timing(Function::value);
  const FunctionTiming* order[] = {&load, &score, &value};
  constexpr int kIterations = 12;  // the steady state is reached after one
  int start[3 * kIterations] = {};
  for (int i = 1; i < 3 * kIterations; ++i) {
    start[i] = start[i - 1] + order[(i - 1) % 3]->conflict_free.at(shape) + 1;
    if (i >= slots) {
      start[i] = std::max(start[i], start[i - slots] + order[(i - slots) % 3]->busy.at(shape) + 1);
    }
  }
  return start[3 * kIterations - 3] - start[3 * kIterations - 6];
}

int isolated_tile(const ArrayShape& shape) {
  const int load = plan_timing(Function::load_stationary).conflict_free.at(shape) + 1;
  const int score = plan_timing(Function::score).conflict_free.at(shape) + 1;
  const int value = plan_timing(Function::value).busy.at(shape) + 1;
  const int scale = plan_timing(Function::lse_norm_scale).busy.at(shape) + 1;
  return load + score + value + scale + plan_timing(Function::lse_norm).busy.at(shape);
}

}  // namespace flashloom::systolic
