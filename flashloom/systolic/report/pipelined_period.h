#pragma once

#include "flashloom/systolic/plan/cycle_form.h"

namespace flashloom::systolic {

/// Design variants that neither the simulator nor the RTL builds, as closed forms derived from the
/// plan; reports mark them so.
struct DerivedVariant {
  int pe_depth = 1;              // pipeline stages of a PE's multiply-add
  bool shadow_register = false;  // the next queries are loaded beside the current ones
};

/// Steady cycles of an inner iteration. With depth S a sum climbs or descends S cycles a row, and
/// each of the three dependent steps of the softmax in a PE waits S - 1 cycles more:
///   C + (S R + R + P + 4 + 3 (S - 1)) + (S (R - 1) + R)
/// with a slot for every instruction; with two slots the accumulations bind as in the plan. A
/// shadow register takes the C cycles of the load away.
int derived_period(const ArrayShape& shape, int slots, const DerivedVariant& variant);

}  // namespace flashloom::systolic
