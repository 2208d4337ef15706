#include "flashloom/systolic/report/picture.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string_view>

#include "flashloom/systolic/plan/plan.h"
#include "flashloom/systolic/report/svg.h"

namespace flashloom::systolic {
namespace {

constexpr double kLeft = 176;
constexpr double kTop = 70;
constexpr double kWidth = 900;
constexpr double kLaneHeight = 16;
// Two iterations, and the load that a shadow register lets run beside them.
constexpr Function kPlain[] = {Function::load_stationary, Function::score, Function::value,
                               Function::load_stationary, Function::score, Function::value};
constexpr Function kWithShadow[] = {Function::load_stationary, Function::score,
                                    Function::value,           Function::score,
                                    Function::value,           Function::load_stationary};

// One lane a signal and place.
struct Lane {
  Signal signal;
  int row;  // of a PE; -1 elsewhere
  double y;
};

std::string lane_name(const Lane& lane) {
  return lane.row < 0 ? std::string(signal_name(lane.signal))
                      : fmt::format("{}, row {}", signal_name(lane.signal), lane.row);
}

std::vector<Lane> make_lanes(const MachineConfig& config) {
  std::vector<Lane> lanes;
  double y = kTop;
  for (int signal = 0; signal < kSignalCountWithShadow; ++signal) {
    const auto of = static_cast<Signal>(signal);
    const bool used =
        std::ranges::any_of(plan_windows(config.shape.shadow), [&](const Window& window) {
          return window.signal == of && window.function <= Function::value;
        });
    if (!used) {
      continue;
    }
    const bool of_pe = control_bit(of) >= 0;
    for (const int row : of_pe ? std::vector{0, config.shape.rows - 1} : std::vector{-1}) {
      lanes.push_back({of, row, y});
      y += kLaneHeight;
    }
    y += 4;
  }
  return lanes;
}

}  // namespace

std::string plan_picture(const MachineConfig& config) {
  const std::vector<Lane> lanes = make_lanes(config);
  const std::span<const Function> functions = config.shape.shadow ? kWithShadow : kPlain;
  const std::vector<int> starts = start_cycles(config.shape, config.controller.slots, functions);
  int end = 0;
  for (size_t i = 0; i < starts.size(); ++i) {
    end = std::max(end, starts[i] + plan_timing(functions[i]).busy.at(config.shape));
  }
  const double scale = kWidth / end;
  const double bottom = lanes.back().y + kLaneHeight;
  const std::string title =
      fmt::format("Two inner iterations on {} x {}, {} pieces: column 0, period {} cycles",
                  config.shape.rows, config.shape.columns, config.shape.pieces,
                  iteration_period(config.shape, config.controller.slots));
  Svg svg(kLeft + kWidth + 24, bottom + 60, title);
  svg.text(kLeft, 24, title);
  constexpr std::string_view kNames[] = {"load_stationary", "score", "value"};
  for (int i = 0; i < 3; ++i) {
    const double x = kLeft + 170 * i;
    svg.rectangle(fmt::format("series{}", i), x, 36, 12, 12);
    svg.text(x + 18, 46, kNames[i], "start", true);
  }
  for (const Lane& lane : lanes) {
    svg.rectangle("faint", kLeft, lane.y, kWidth, kLaneHeight - 3);
    svg.text(kLeft - 8, lane.y + 10, lane_name(lane), "end", true);
  }
  for (size_t i = 0; i < starts.size(); ++i) {
    for (const Window& window : plan_windows(config.shape.shadow)) {
      if (window.function != functions[i]) {
        continue;
      }
      for (const Lane& lane : lanes) {
        if (lane.signal == window.signal) {
          const int delay = wave_delay(window.wave, config.shape, std::max(lane.row, 0));
          const int first = starts[i] + window.first.at(config.shape) + delay;
          const int last = starts[i] + window.last.at(config.shape) + delay;
          svg.rectangle(fmt::format("series{}", static_cast<int>(functions[i])),
                        kLeft + scale * first, lane.y, std::max(scale * (last - first + 1), 1.0),
                        kLaneHeight - 3,
                        fmt::format("{}: cycles {} to {}", lane_name(lane), first, last));
        }
      }
    }
  }
  for (const int start : starts) {
    const double x = kLeft + scale * start;
    svg.line("edge", x, kTop - 6, x, bottom);
    svg.text(x, bottom + 16, fmt::format("{}", start), "middle", true);
  }
  svg.text(kLeft, bottom + 36, "cycles; lines are timers 0", "start", true);
  return svg.finish();
}

namespace {

// A scale of numbers along `length` pixels.
class Axis {
 public:
  Axis(double low, double high, bool logarithmic) : logarithmic_(logarithmic) {
    low_ = place(low);
    high_ = place(high);
    if (high_ <= low_) {
      high_ = low_ + 1;
    }
  }

  double at(double value) const { return (place(value) - low_) / (high_ - low_); }

 private:
  double place(double value) const { return logarithmic_ ? std::log2(value) : value; }

  bool logarithmic_;
  double low_ = 0;
  double high_ = 1;
};

// The least of 1, 2, 2.5 or 5 times a power of ten with which five steps reach `high`.
double round_step(double high) {
  const double least = high > 0 ? high / 5 : 1;
  const double power = std::pow(10, std::floor(std::log10(least)));
  for (const double step : {1.0, 2.0, 2.5, 5.0}) {
    if (step * power >= least * (1 - 1e-9)) {
      return step * power;
    }
  }
  return 10 * power;
}

}  // namespace

std::string line_plot(const std::string& title, const std::string& x_name,
                      const std::string& y_name, const std::vector<PlotSeries>& series) {
  constexpr double kPlotWidth = 560;
  constexpr double kPlotHeight = 320;
  constexpr double kPlotLeft = 80;
  double x_low = INFINITY;
  double x_high = -INFINITY;
  double y_high = 0;
  for (const PlotSeries& of : series) {
    for (const auto& [x, y] : of.points) {
      x_low = std::min(x_low, x);
      x_high = std::max(x_high, x);
      y_high = std::max(y_high, y);
    }
  }
  const double y_step = round_step(y_high);
  const int lines = std::max(1, static_cast<int>(std::ceil(y_high / y_step - 1e-9)));
  y_high = lines * y_step;
  const Axis x_axis(x_low, x_high, x_low > 0 && x_high > 8 * x_low);
  const Axis y_axis(0, y_high, false);
  const auto px = [&](double x) { return kPlotLeft + kPlotWidth * x_axis.at(x); };
  const auto py = [&](double y) { return kTop + kPlotHeight * (1 - y_axis.at(y)); };
  Svg svg(kPlotLeft + kPlotWidth + 200, kTop + kPlotHeight + 60, title);
  svg.text(kPlotLeft, 24, title);
  svg.text(kPlotLeft, 46, y_name, "start", true);
  for (int i = 0; i <= lines; ++i) {
    const double y = y_step * i;
    svg.line("grid", kPlotLeft, py(y), kPlotLeft + kPlotWidth, py(y));
    svg.text(kPlotLeft - 6, py(y) + 4, fmt::format("{:.4g}", y), "end", true);
  }
  for (size_t s = 0; s < series.size(); ++s) {
    const std::string kind = fmt::format("series{}", s % 6);
    const auto& points = series[s].points;
    for (size_t i = 0; i < points.size(); ++i) {
      const auto [x, y] = points[i];
      if (i > 0) {
        svg.line(kind, px(points[i - 1].first), py(points[i - 1].second), px(x), py(y));
      }
      svg.circle(kind, px(x), py(y), 3, fmt::format("{}: {:g}, {:g}", series[s].name, x, y));
      if (s == 0) {
        svg.text(px(x), kTop + kPlotHeight + 18, fmt::format("{:g}", x), "middle", true);
      }
    }
    const double y = kTop + 18 * static_cast<double>(s);
    svg.rectangle(kind, kPlotLeft + kPlotWidth + 16, y, 12, 12);
    svg.text(kPlotLeft + kPlotWidth + 34, y + 10, series[s].name, "start", true);
  }
  svg.text(kPlotLeft + kPlotWidth / 2, kTop + kPlotHeight + 42, x_name, "middle", true);
  return svg.finish();
}

}  // namespace flashloom::systolic
