#pragma once

#include <string>
#include <vector>

#include "cli/attend_case.h"

namespace flashloom::cli {

/// One result beside the reference's.
struct AttendError {
  std::string name;  // "out", "dq", ...
  double error = 0;  // largest difference; NaN or infinite where one of them is
  double bound = 0;

  bool ok() const { return error <= bound; }
};

/// Rough seconds of the reference for a call with so many visible pairs and pairs at all.
double reference_seconds(const AttendCase& call, double visible_pairs, double all_pairs);

/// Runs the float64 reference on the same inputs, its results in float64 too, and compares.
///
/// A bound is what rounding can explain: f32 arithmetic errs by 2^-24 of a score's size for each of
/// a few operations, and relative to the largest entry of a result; half storage rounds the result,
/// and the saved output that the backward pass reads. `tolerance` multiplies all bounds.
std::vector<AttendError> check_results(const AttendCase& call, const AttendResults& results,
                                       double tolerance);

}  // namespace flashloom::cli
