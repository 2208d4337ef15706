#include "flashloom/systolic/report/pipelined_period.h"

#include "flashloom/systolic/plan/plan.h"

namespace flashloom::systolic {

int derived_period(const ArrayShape& shape, int slots, const DerivedVariant& variant) {
  const int stages = variant.pe_depth;
  // Beyond the plan: scores climb and values descend R more cycles a stage, three steps wait.
  const int climb = (stages - 1) * shape.rows;
  const int steps = 3 * (stages - 1);
  const int descend = (stages - 1) * (shape.rows - 1);
  const int load = variant.shadow_register ? shape.columns : 0;
  return iteration_period(shape, slots) + climb + steps + descend - load;
}

}  // namespace flashloom::systolic
