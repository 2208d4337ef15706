#include "flashloom/systolic/plan/plan.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

namespace flashloom::systolic {
namespace {

ArrayShape square(int n) {
  return {.rows = n, .columns = n};
}

TEST(SystolicPlan, PeriodsOfTheTwoSlotController) {
  const std::map<int, int> periods = {{4, 33},   {8, 53},    {16, 93},   {32, 173},
                                      {64, 333}, {128, 653}, {256, 1293}};
  for (const auto& [n, period] : periods) {
    EXPECT_EQ(iteration_period(square(n), 2), period) << n;
    EXPECT_EQ(iteration_period(square(n), 2), 5 * n + 13) << n;
    EXPECT_EQ(iteration_period(square(n), 3), 5 * n + 11) << n;
    EXPECT_EQ(isolated_tile(square(n)), 7 * n + 32) << n;
  }
}

// Derived, not published: max(4R + C, 3R + 2C) + P + 5.
TEST(SystolicPlan, PeriodsOfRectangles) {
  for (const auto& [r, c] : {std::pair{4, 8}, {8, 4}, {16, 64}, {64, 16}, {8, 32}}) {
    const ArrayShape shape{.rows = r, .columns = c, .pieces = 4};
    EXPECT_EQ(iteration_period(shape, 2), std::max(4 * r + c, 3 * r + 2 * c) + 4 + 5);
  }
}

// The FPGA's counter: serial issue, a divider of 19 cycles, one 16 x 16 tile.
TEST(SystolicPlan, BusyCyclesOfTheFpga) {
  const ArrayShape fpga{.rows = 16, .columns = 16, .pieces = 8, .divider_latency = 19};
  int sum = 0;
  for (const FunctionTiming& timing : plan_timings()) {
    sum += timing.busy.at(fpga);
  }
  EXPECT_EQ(sum, 179);
}

TEST(SystolicPlan, WindowsLieInsideTheBusyCycles) {
  for (const ArrayShape& shape : {square(4), square(128), ArrayShape{8, 4, 16, 3}}) {
    for (const Window& window : plan_windows()) {
      const FunctionTiming& timing = plan_timing(window.function);
      EXPECT_EQ(timing.function, window.function);
      EXPECT_LE(0, window.first.at(shape));
      EXPECT_LE(window.first.at(shape), window.last.at(shape)) << signal_name(window.signal);
      EXPECT_LT(window.last.at(shape), timing.busy.at(shape)) << signal_name(window.signal);
      const bool of_pe = window.signal >= Signal::mac && window.signal <= Signal::exp2;
      EXPECT_EQ(of_pe, window.wave != Wave::none) << signal_name(window.signal);
    }
  }
}

// Resources that two instructions must never drive in the same cycle: the left border, each control
// bit of a row, the comparators' command, the accumulators' command, their SRAM's read port.
class Occupancy {
 public:
  explicit Occupancy(const ArrayShape& shape) : shape_(shape) {}

  void add(int number, Function function, int start) {
    for (const Window& window : plan_windows()) {
      if (window.function == function) {
        for (int t = window.first.at(shape_); t <= window.last.at(shape_); ++t) {
          drive(number, window, start + t);
        }
      }
    }
  }

 private:
  void drive(int number, const Window& window, int cycle) {
    std::string name{signal_name(window.signal)};
    if (window.wave != Wave::none) {
      for (int r = 0; r < shape_.rows; ++r) {
        const int delay = window.wave == Wave::up     ? shape_.rows - 1 - r
                          : window.wave == Wave::down ? r
                                                      : 0;
        claim(number, fmt::format("{} row {}", name, r), cycle + delay);
      }
      return;
    }
    const Signal signal = window.signal;
    if (signal <= Signal::constant_slopes) {
      name = "border";
    } else if (signal >= Signal::compare_update && signal <= Signal::compare_reset) {
      name = "comparator";
    } else if (signal >= Signal::accumulate_exp_s1) {
      name = "accumulator";
    }
    claim(number, name, cycle);
  }

  void claim(int number, const std::string& resource, int cycle) {
    const auto [place, fresh] = owner_.emplace(std::pair(resource, cycle), number);
    EXPECT_TRUE(fresh) << resource << " in cycle " << cycle << " by instruction " << place->second
                       << " and " << number;
  }

  ArrayShape shape_;
  std::map<std::pair<std::string, int>, int> owner_;
};

void check_disjoint(const ArrayShape& shape, int slots) {
  const Function program[] = {Function::load_stationary, Function::score, Function::value,
                              Function::load_stationary, Function::score, Function::value,
                              Function::load_stationary, Function::score, Function::value};
  Occupancy occupancy(shape);
  std::vector<int> starts;
  for (int i = 0; i < 9; ++i) {
    int start = 0;
    if (i > 0) {
      start = starts[i - 1] + plan_timing(program[i - 1]).conflict_free.at(shape) + 1;
    }
    if (i >= slots) {
      start =
          std::max(start, starts[i - slots] + plan_timing(program[i - slots]).busy.at(shape) + 1);
    }
    starts.push_back(start);
    occupancy.add(i, program[i], start);
  }
}

TEST(SystolicPlan, NoTwoInstructionsDriveTheSameWire) {
  for (const int slots : {1, 2, 3}) {
    for (const ArrayShape& shape :
         {square(4), square(8), square(16), ArrayShape{4, 8}, ArrayShape{8, 4},
          ArrayShape{16, 4, 4, 15}, ArrayShape{4, 32, 16, 15}}) {
      check_disjoint(shape, slots);
    }
  }
}

TEST(SystolicPlan, FormsReadAsExpressions) {
  EXPECT_EQ(describe(plan_timing(Function::score).busy), "3*R + C + P + 4");
  EXPECT_EQ(describe(plan_timing(Function::value).conflict_free), "2*R - 2");
  EXPECT_EQ(describe(CycleForm{}), "0");
}

}  // namespace
}  // namespace flashloom::systolic
