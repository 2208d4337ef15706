#pragma once

#include <string>
#include <vector>

#include "flashloom/systolic/machine/machine_config.h"

namespace flashloom::systolic {

/// One inner iteration's windows in column 0 as SVG, straight from the plan: a lane for the left
/// border, the first and last row of PEs, the comparators and the accumulators; the next iteration
/// follows in the same lanes where the issue rule lets it.
std::string plan_picture(const MachineConfig& config);

/// A line of a plot.
struct PlotSeries {
  std::string name;
  std::vector<std::pair<double, double>> points;
};

/// A plot with one axis of numbers (logarithmic where they span more than a factor of eight).
std::string line_plot(const std::string& title, const std::string& x_name,
                      const std::string& y_name, const std::vector<PlotSeries>& series);

}  // namespace flashloom::systolic
