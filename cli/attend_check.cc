#include "cli/attend_check.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/attention_reference.h"
#include "flashloom/ops/attention/reference_head.h"

namespace flashloom::cli {
namespace {

struct Comparison {
  double error = 0;    // largest difference
  double largest = 0;  // of the finite expected values
};

Comparison compare(const ConstTensorView& actual, const ConstTensorView& expected) {
  Comparison result;
  for (int64_t i = 0; i < expected.size(); ++i) {
    const double a = load_element(actual.data, actual.dtype, i);
    const double b = load_element(expected.data, expected.dtype, i);
    if (std::isfinite(b)) {
      result.largest = std::max(result.largest, std::fabs(b));
    }
    if (a != b) {
      const double difference = std::fabs(a - b);
      // NaN stays: no comparison with it is true.
      result.error =
          difference > result.error || std::isnan(difference) ? difference : result.error;
      if (std::isnan(difference)) {
        result.error = std::numeric_limits<double>::infinity();
      }
    }
  }
  return result;
}

double storage_unit(DType dtype) {
  return dtype == DType::bf16 ? 0x1p-8 : dtype == DType::f16 ? 0x1p-11 : 0;
}

}  // namespace

double reference_seconds(const AttendCase& call, double visible_pairs, double all_pairs) {
  // Plain loops of this library, one core of a 2.6 GHz Zen 4: some 0.9 ns a multiply-add of a
  // visible pair, 4 ns a pair to find it hidden.
  const auto dims = static_cast<double>(call.inputs().q.dim(-1) + call.inputs().v.dim(-1));
  const double passes = call.flags().backward ? 3.5 : 1;
  return (visible_pairs * dims * 0.9e-9 + all_pairs * 4e-9) * passes / thread_count();
}

std::vector<AttendError> check_results(const AttendCase& call, const AttendResults& results,
                                       double tolerance) {
  const AttendResults expected = call.results(DType::f64);
  AttentionOptions options = call.options();
  options.gate.kept = {};
  options.gate.dropped_mass = {};
  attention_forward_reference(call.outputs(expected), call.inputs(), options);
  if (call.flags().backward) {
    attention_backward_reference(call.gradients(expected), call.inputs(), call.saved(expected),
                                 options);
  }
  const double largest_lse = compare(results.lse, expected.lse).largest;
  // Scores of size L are off by L 2^-24 for each rounding on their way (product, scale, softcap,
  // bias, difference to the maximum), probabilities by that share of themselves; sums of random
  // signs grow no faster than what they add up to.
  const double arithmetic = 0x1p-24 * (64 + 8 * largest_lse);
  std::vector<AttendError> errors;
  const auto add = [&](const char* name, const ConstTensorView& actual,
                       const ConstTensorView& reference, double storage) {
    if (actual) {
      const Comparison found = compare(actual, reference);
      errors.push_back(
          {name, found.error, tolerance * (arithmetic + storage) * std::max(1.0, found.largest)});
    }
  };
  const double storage = storage_unit(call.inputs().q.dtype);
  add("out", results.out, expected.out, storage);
  add("lse", results.lse, expected.lse, 0);
  add("entropy", results.entropy, expected.entropy, 0);
  add("dq", results.dq, expected.dq, 2 * storage);
  add("dk", results.dk, expected.dk, 2 * storage);
  add("dv", results.dv, expected.dv, 2 * storage);
  add("dsinks", results.dsinks, expected.dsinks, 2 * storage);
  add("dbias", results.dbias, expected.dbias, 2 * storage);
  return errors;
}

}  // namespace flashloom::cli
