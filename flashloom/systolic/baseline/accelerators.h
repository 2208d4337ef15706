#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "flashloom/systolic/report/costs.h"

namespace flashloom::systolic {

/// Analytic models of the two accelerators that the paper measured. Uncalibrated: every engine
/// works without pause on what a flash kernel must do, all engines overlap, so the slowest sets the
/// time. That bounds such a kernel from above; what the vendors' kernels reach is in `published`.
struct AcceleratorModel {
  std::string_view name;
  std::vector<SourcedNumber> parameters;
  std::vector<SourcedNumber> engines;  // time of each engine for one block
  double utilisation = 0;              // uncalibrated
  double published_ratio = 0;          // the paper's: fused array over this accelerator

  /// Our ratio: `fused` is the fused array's utilisation.
  double ratio(double fused) const { return fused / utilisation; }

  /// A parameter that alone would give the published ratio, and its value. A model calibrated to
  /// the answer proves nothing; it says what would have to be true.
  std::string calibration_name;
  double block_time = 0;   // of the slowest engine, in the unit below
  double useful_time = 0;  // of the matrix engine's useful work
  std::string_view time_unit;
  double unit_of_parameter = 0;  // block time that one unit of the parameter adds

  double calibrated_parameter(double fused) const {
    const double needed = useful_time * published_ratio / fused;
    return (needed - block_time) / unit_of_parameter;
  }
};

/// 128 queries x 512 keys, head dimension 128.
AcceleratorModel neuron_core_v2();
/// 128 queries x 128 keys, head dimension 128.
AcceleratorModel tpu_v5e();

}  // namespace flashloom::systolic
