#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

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
  // Of arrays with a shadow register alone.
  shadow_read,  // a scratchpad row is read for the shadow registers, which have links of their own
  load_shadow,  // a control bit of a PE, as the next
  copy_shadow,
};
inline constexpr int kSignalCount = 26;  // of the published array
inline constexpr int kSignalCountWithShadow = 29;
inline constexpr int kFirstControlBit = static_cast<int>(Signal::mac);
inline constexpr int kControlBits = 9;  // of the published array; the shadow register's two follow

/// Place of a PE's control bit, mac first; -1 for other signals.
constexpr int control_bit(Signal signal) {
  if (signal >= Signal::load_shadow) {
    return kControlBits + static_cast<int>(signal) - static_cast<int>(Signal::load_shadow);
  }
  const int bit = static_cast<int>(signal) - kFirstControlBit;
  return bit >= 0 && bit < kControlBits ? bit : -1;
}

/// When row r of column 0 sees a signal whose window starts at `first`; column c sees it c later
/// (PE control and comparators; not the left border and the accumulators, which are aligned).
enum class Wave : uint8_t {
  none,      // not of a PE
  parallel,  // all rows at once
  up,        // row r after S (R - 1 - r) cycles
  down,      // row r after S r cycles
  settling,  // row r after (S - 1) r cycles: what came down S cycles a row, one row each
};

/// The cycles after which row r sees a wave.
constexpr int wave_delay(Wave wave, const ArrayShape& shape, int row) {
  switch (wave) {
    case Wave::up:
      return shape.pe_depth * (shape.rows - 1 - row);
    case Wave::down:
      return shape.pe_depth * row;
    case Wave::settling:
      return (shape.pe_depth - 1) * row;
    default:
      return 0;
  }
}

/// The wave in an array whose PEs have one stage: the RTL knows no other.
constexpr Wave published_wave(Wave wave) {
  return wave == Wave::settling ? Wave::parallel : wave;
}

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
inline constexpr CycleForm S{.depth = 1};
// S times R, as formulas write it. NOLINTNEXTLINE(readability-identifier-naming)
inline constexpr CycleForm SR{.depth_rows = 1};
inline constexpr CycleForm kShadow{.shadow = 1};

}  // namespace plan_detail

/// With a shadow register load_stationary drives shadow_read and load_shadow, and score copies.
std::span<const Window> plan_windows(bool shadow = false);
std::span<const FunctionTiming> plan_timings();

/// The function whose windows and landmarks serve this one.
constexpr Function planned_as(Function function) {
  return function == Function::score_limit ? Function::score : function;
}

const FunctionTiming& plan_timing(Function function);

/// Then its last read is in the cycle of its release.
constexpr bool reads_spad(Function function) {
  return function != Function::lse_norm_scale && function != Function::lse_norm;
}

/// "score", "compare_update", …
std::string_view function_name(Function function);
std::string_view signal_name(Signal signal);

/// First cycles (timer 0) of functions that issue one after the other when nothing but the plan and
/// the issue rule of `slots` slots holds them up; the first starts in 0.
std::vector<int> start_cycles(const ArrayShape& shape, int slots,
                              std::span<const Function> functions);

/// Steady cycles of an inner iteration: load, score and `values` values (of a value dimension of so
/// many times the rows); with a shadow register no load, since the register keeps the queries. A
/// closed form that the simulator must meet.
int iteration_period(const ArrayShape& shape, int slots, int values = 1);
/// One tile alone: from the load's timer 0 until the normalisation's slot is idle.
int isolated_tile(const ArrayShape& shape);

}  // namespace flashloom::systolic
