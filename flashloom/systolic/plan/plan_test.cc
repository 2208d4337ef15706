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

// Derived, not published: with a shadow register the load's N cycles go, whatever the slots.
TEST(SystolicPlan, PeriodsWithAShadowRegister) {
  for (const int n : {8, 32, 128}) {
    ArrayShape shape = square(n);
    shape.shadow = true;
    EXPECT_EQ(iteration_period(shape, 2), 4 * n + 13) << n;
    EXPECT_EQ(iteration_period(shape, 3), 4 * n + 11) << n;
    EXPECT_EQ(isolated_tile(shape), 7 * n + 33) << n;
  }
}

// Derived: a way up and a way down of S N cycles each, and three steps of the softmax that wait for
// S cycles; with two slots the next load also waits for the last hop to the accumulators.
TEST(SystolicPlan, PeriodsOfPipelinedPes) {
  for (const int n : {8, 32, 128}) {
    for (const int s : {1, 2, 3, 4}) {
      ArrayShape shape = square(n);
      shape.pe_depth = s;
      EXPECT_EQ(iteration_period(shape, 2), (2 * s + 3) * n + 3 * s + 10) << n << " " << s;
      EXPECT_EQ(iteration_period(shape, 3), (2 * s + 3) * n + 2 * s + 9) << n << " " << s;
      shape.shadow = true;
      EXPECT_EQ(iteration_period(shape, 2), (2 * s + 2) * n + 3 * s + 10) << n << " " << s;
    }
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

std::vector<ArrayShape> variants() {
  std::vector<ArrayShape> shapes = {square(4),
                                    square(8),
                                    square(16),
                                    ArrayShape{4, 8},
                                    ArrayShape{8, 4},
                                    ArrayShape{16, 4, 4, 15},
                                    ArrayShape{4, 32, 16, 15}};
  const size_t published = shapes.size();
  for (size_t i = 0; i < published; ++i) {
    for (const int depth : {1, 2, 5}) {
      for (const bool shadow : {false, true}) {
        shapes.push_back(shapes[i]);
        shapes.back().pe_depth = depth;
        shapes.back().shadow = shadow;
      }
    }
  }
  return shapes;
}

TEST(SystolicPlan, WindowsLieInsideTheBusyCycles) {
  for (const ArrayShape& shape : variants()) {
    for (const Window& window : plan_windows(shape.shadow)) {
      const FunctionTiming& timing = plan_timing(window.function);
      EXPECT_EQ(timing.function, window.function);
      EXPECT_LE(0, window.first.at(shape));
      EXPECT_LE(window.first.at(shape), window.last.at(shape)) << signal_name(window.signal);
      EXPECT_LT(window.last.at(shape), timing.busy.at(shape)) << signal_name(window.signal);
      const bool of_pe = control_bit(window.signal) >= 0;
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
    for (const Window& window : plan_windows(shape_.shadow)) {
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
        const int delay = wave_delay(window.wave, shape_, r);
        claim(number, fmt::format("{} row {}", name, r), cycle + delay);
        // Registers and links have one source a cycle.
        if (window.signal == Signal::load_reg_li || window.signal == Signal::flow_lr) {
          claim(number, fmt::format("link to the right of row {}", r), cycle + delay);
        }
      }
      return;
    }
    const Signal signal = window.signal;
    if (signal == Signal::spad_read || signal == Signal::shadow_read) {
      claim(number, "scratchpad", cycle);
    }
    if (signal <= Signal::constant_slopes) {
      name = "border";
    } else if (signal >= Signal::compare_update && signal <= Signal::compare_reset) {
      name = "comparator";
    } else if (signal >= Signal::accumulate_exp_s1 && signal <= Signal::accumulate_reciprocal) {
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
  using enum Function;
  // As programs are: a load before each score; with a shadow register one here and there. Value
  // dimensions above the rows take several values.
  constexpr auto kLoad = load_stationary;
  const std::vector<Function> plain = {kLoad, score, value, kLoad, score,
                                       value, value, kLoad, score};
  const std::vector<Function> shadow = {kLoad, score, value, score, value, value,
                                        kLoad, score, kLoad, value, score, value};
  const std::vector<Function>& program = shape.shadow ? shadow : plain;
  Occupancy occupancy(shape);
  const std::vector<int> starts = start_cycles(shape, slots, program);
  for (size_t i = 0; i < program.size(); ++i) {
    occupancy.add(static_cast<int>(i), program[i], starts[i]);
  }
}

TEST(SystolicPlan, NoTwoInstructionsDriveTheSameWire) {
  for (const int slots : {1, 2, 3}) {
    for (const ArrayShape& shape : variants()) {
      check_disjoint(shape, slots);
    }
  }
}

TEST(SystolicPlan, FormsReadAsExpressions) {
  EXPECT_EQ(describe(plan_timing(Function::score).busy), "2*S*R + R + C + P + 3*S + 1");
  EXPECT_EQ(describe(plan_timing(Function::score).busy.published()), "3*R + C + P + 4");
  EXPECT_EQ(describe(plan_timing(Function::value).conflict_free.published()), "2*R - 2");
  EXPECT_EQ(describe(plan_timing(Function::load_stationary).conflict_free), "C + shadow - 1");
  EXPECT_EQ(describe(CycleForm{}), "0");
}

}  // namespace
}  // namespace flashloom::systolic
