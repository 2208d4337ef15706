#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "flashloom/systolic/plan/cycle_form.h"

namespace flashloom::systolic {

/// The plan: for every matrix instruction, which signal is driven in which cycles of the
/// instruction's timer. It is the sole source of timing of the register-level model, the fast
/// simulator and the RTL (through the generated package); docs/systolic.md draws it.
///
/// An instruction that issues in cycle t has timer 0 in cycle t + 1.

/// Matrix instructions, by their code.
enum class Function : uint8_t {
  load_stationary = 0,
  score = 1,
  value = 2,
  lse_norm_scale = 3,
  lse_norm = 4,
  score_limit = 5,  // score whose keys from `limit` on are masked; the timing is score's
};
inline constexpr int kFunctionCount = 6;

enum class Signal : uint8_t {
  // At the left border: a scratchpad row is read, or constants replace it. Data reach the delayer
  // one cycle later.
  spad_read,
  constant_one,
  constant_scale,   // the softmax scale as an element
  constant_slopes,  // one piece a cycle, piece 0 first
  // Control bits of a PE, in the order of their bits.
  mac,
  acc_ui,
  load_reg_li,
  load_reg_ui,
  flow_lr,
  flow_ud,
  flow_du,
  update_reg,
  exp2,
  // Commands of the comparators above row 0.
  compare_update,
  compare_send_max,
  compare_send_difference,
  compare_send_zero,
  compare_send_intercepts,  // one piece a cycle, piece 0 first
  compare_reset,
  // Accumulation SRAM and accumulators below the last row. A row is read one cycle before the
  // command that uses it, and its result is written in the command's own cycle.
  accumulator_read,
  accumulate_exp_s1,
  accumulate_exp_s2,
  accumulate_sum,    // scale · sram + array
  accumulate_scale,  // scale · sram
  accumulate_set_scale,
  accumulate_reciprocal,  // the result is there at the end of the window
};
inline constexpr int kSignalCount = 26;
inline constexpr int kFirstControlBit = static_cast<int>(Signal::mac);
inline constexpr int kControlBits = 9;

/// When row r of column 0 sees a signal whose window starts at `first`; column c sees it c later
/// (PE control and comparators; not the left border and the accumulators, which are aligned).
enum class Wave : uint8_t {
  none,      // not of a PE
  parallel,  // all rows at once
  up,        // row r after R - 1 - r cycles
  down,      // row r after r cycles
};

struct Window {
  Function function;
  Signal signal;
  Wave wave;
  CycleForm first;
  CycleForm last;  // inclusive
};

/// The landmarks of an instruction's timer.
struct FunctionTiming {
  Function function;
  CycleForm conflict_free;  // in this cycle the next instruction may issue to another slot
  CycleForm release;        // the semaphore is written at the end of this cycle
  CycleForm busy;           // cycles that the instruction occupies its slot
};

namespace plan_detail {

inline constexpr CycleForm R{.rows = 1};
inline constexpr CycleForm C{.columns = 1};
inline constexpr CycleForm P{.pieces = 1};
inline constexpr CycleForm L{.divider_latency = 1};

}  // namespace plan_detail

std::span<const Window> plan_windows();
std::span<const FunctionTiming> plan_timings();

/// The function whose windows and landmarks serve this one.
constexpr Function planned_as(Function function) {
  return function == Function::score_limit ? Function::score : function;
}

const FunctionTiming& plan_timing(Function function);

/// "score", "compare_update", …
std::string_view function_name(Function function);
std::string_view signal_name(Signal signal);

/// Steady cycles of an inner iteration (load, score, value) and of what follows from the plan and
/// the issue rule of `slots` slots; closed forms that the simulator must meet.
int iteration_period(const ArrayShape& shape, int slots);
/// One tile alone: from the load's timer 0 until the normalisation's slot is idle.
int isolated_tile(const ArrayShape& shape);

}  // namespace flashloom::systolic
