#include "flashloom/systolic/report/waveform.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include "flashloom/core/error.h"
#include "flashloom/systolic/array/attention_case_for_test.h"
#include "flashloom/systolic/report/fst.h"
#include "flashloom/systolic/report/vcd.h"
#include "flashloom/systolic/report/waveform_reader_for_test.h"

namespace flashloom::systolic {
namespace {

using testing::HasSubstr;

const ReadSignal& signal_of(const ReadWaveform& waveform, const std::string& name) {
  const auto at = std::ranges::find(waveform.signals, name, &ReadSignal::name);
  expect(at != waveform.signals.end(), "no signal " + name);
  return *at;
}

uint64_t value_at(const ReadSignal& signal, int64_t time) {
  const auto after =
      std::ranges::upper_bound(signal.changes, time, {}, &std::pair<int64_t, uint64_t>::first);
  return std::prev(after)->second;
}

// The same values at the same times in both formats, and the registers' own at every cycle.
TEST(SystolicWaveform, FormatsHoldEveryRegisterOfEveryCycle) {
  const AttentionCase test(small_machine(4, 4), {.queries = 4, .keys = 7});
  StringSink vcd_file;
  StringSink fst_file;
  MachineState state = test.fresh();
  VcdWriter vcd_writer(vcd_file);
  write_register_waveform(test.config, test.schedule, state, vcd_writer);
  EXPECT_TRUE(same_memory(state, test.reference()));
  state = test.fresh();
  FstWriter fst_writer(fst_file, 1000);
  write_register_waveform(test.config, test.schedule, state, fst_writer);
  const ReadWaveform vcd = read_vcd_for_test(vcd_file.text);
  const ReadWaveform fst = read_fst_for_test(fst_file.text);
  EXPECT_GT(fst.blocks, 5);
  EXPECT_EQ(fst.end, test.schedule.cycles);
  EXPECT_EQ(vcd.end, test.schedule.cycles);
  EXPECT_LT(fst_file.text.size(), vcd_file.text.size());
  EXPECT_TRUE(fst.signals == vcd.signals);

  EXPECT_EQ(signal_of(fst, "pe_3_0.down").width, 32);
  EXPECT_EQ(signal_of(fst, "pe_3_0.down_valid").width, 1);
  const size_t registers = dump(ArrayState(test.config)).size();
  const size_t first = fst.signals.size() - registers;
  int64_t cycles = 0;
  state = test.fresh();
  run_reference(test.config, test.schedule, state, [&](const ObservedCycle& cycle) {
    const std::vector<uint32_t> words = dump(cycle.registers);
    for (size_t i = 0; i < registers; ++i) {
      ASSERT_EQ(value_at(fst.signals[first + i], cycle.cycle), words[i])
          << dump_name(test.config, i) << " in cycle " << cycle.cycle;
    }
    ++cycles;
  });
  EXPECT_EQ(cycles, test.schedule.cycles);
}

// GTKWave's own converter reads the same signals and values, where it is installed.
TEST(SystolicWaveform, GtkWaveReadsTheFst) {
  if (std::system("command -v fst2vcd >/dev/null 2>&1") != 0) {
    GTEST_SKIP() << "fst2vcd (Debian: gtkwave) is not installed";
  }
  MachineConfig machine = small_machine(4, 4);
  machine.shape.shadow = true;
  machine.shape.pe_depth = 2;
  const AttentionCase test(machine, {.queries = 4, .keys = 7, .value_dim = 6});
  StringSink file;
  FstWriter writer(file, 1000);
  MachineState state = test.fresh();
  write_register_waveform(test.config, test.schedule, state, writer);
  const std::string folder = testing::TempDir();
  const std::string fst = fmt::format("{}/flashloom_{}.fst", folder, getpid());
  const std::string vcd = fst + ".vcd";
  std::ofstream(fst, std::ios::binary) << file.text;
  ASSERT_EQ(std::system(fmt::format("fst2vcd -f '{}' -o '{}'", fst, vcd).c_str()), 0);
  std::ifstream converted(vcd, std::ios::binary);
  const std::string text{std::istreambuf_iterator<char>(converted), {}};
  std::filesystem::remove(fst);
  std::filesystem::remove(vcd);
  // Before the scopes: date, version and scale, in lines of their own.
  const ReadWaveform read = read_vcd_for_test(std::string_view(text).substr(text.find("$scope")));
  const ReadWaveform own = read_fst_for_test(file.text);
  EXPECT_EQ(signal_of(own, "pe_3_0.shadow").width, 32);
  EXPECT_EQ(read.end, own.end);
  EXPECT_TRUE(read.signals == own.signals);
}

TEST(SystolicWaveform, ScheduleShowsSlotsAndTransfers) {
  const AttentionCase test(small_machine(8, 8), {.queries = 20});
  StringSink file;
  FstWriter writer(file);
  write_schedule_waveform(test.config, test.schedule, writer);
  const ReadWaveform read = read_fst_for_test(file.text);
  EXPECT_EQ(read.blocks, 1);
  for (const MatrixIssue& issue : test.schedule.issues) {
    const std::string slot = fmt::format("slot{}.", issue.slot);
    const auto function =
        test.schedule.program[static_cast<size_t>(issue.instruction)].matrix_function();
    EXPECT_EQ(value_at(signal_of(read, slot + "busy"), issue.start()), 1u);
    EXPECT_EQ(value_at(signal_of(read, slot + "function"), issue.start()),
              static_cast<uint64_t>(function));
  }
  int64_t under_way = 0;  // in all cycles together
  for (const DmaTransfer& transfer : test.schedule.transfers) {
    under_way += transfer.finished + 1 - transfer.acquired;
  }
  int64_t shown = 0;
  for (int64_t cycle = 0; cycle <= read.end; ++cycle) {
    for (const char* name : {"dma.loads_under_way", "dma.stores_under_way"}) {
      shown += static_cast<int64_t>(value_at(signal_of(read, name), cycle));
    }
  }
  EXPECT_EQ(shown, under_way);
}

// Every width, gaps without ticks, signals that rest for blocks, blocks of any size.
TEST(SystolicWaveform, FstHoldsWhatWasSet) {
  for (const size_t block_bytes : {1, 50, 3000, 1 << 22}) {
    std::mt19937_64 random(block_bytes);
    StringSink file;
    FstWriter writer(file, block_bytes);
    std::vector<ReadSignal> expected;
    for (int width = 1; width <= 64; ++width) {
      expected.push_back(
          {fmt::format("{}w{}", width % 9 < 5 ? "" : "part.", width), width, {{0, 0}}});
      EXPECT_EQ(writer.declare(expected.back().name, width), expected.size() - 1);
    }
    int64_t time = 0;
    for (int step = 0; step < 500; ++step) {
      time += 1 + static_cast<int64_t>(random() % (step % 50 == 0 ? 1'000'000'000'000 : 3));
      for (int i = 0; i < 4; ++i) {
        const size_t signal = random() % (step < 250 ? 20 : 64);
        const uint64_t value = random() >> (64 - expected[signal].width);
        auto& changes = expected[signal].changes;
        writer.set(time, signal, ~value >> (64 - expected[signal].width));  // overruled
        writer.set(time, signal, value);
        if (changes.back().first == time) {
          changes.pop_back();
        }
        if (changes.back().second != value) {
          changes.emplace_back(time, value);
        }
      }
    }
    writer.finish(time + 5);
    const ReadWaveform read = read_fst_for_test(file.text);
    EXPECT_EQ(read.end, time + 5);
    EXPECT_TRUE(read.signals == expected) << block_bytes;
    EXPECT_EQ(read.blocks > 1, block_bytes < 10'000);
  }
}

TEST(SystolicWaveform, RefusesWhatAWaveformCannotHold) {
  const auto refused = [](const auto& act, const std::string& words) {
    StringSink file;
    FstWriter writer(file);
    writer.declare("bit", 1);
    writer.declare("three", 3);
    try {
      act(writer);
      ADD_FAILURE() << "expected: " << words;
    } catch (const InvalidArgument& error) {
      EXPECT_THAT(error.what(), HasSubstr(words));
    }
  };
  refused([](WaveformWriter& to) { to.declare("wide", 65); }, "from 1 to 64 bits");
  refused([](WaveformWriter& to) { to.declare("", 1); }, "NAME or SCOPE.NAME");
  for (const char* name : {".a", "a.", "a.b.c"}) {
    refused([&](WaveformWriter& to) { to.declare(name, 1); }, "NAME or SCOPE.NAME");
  }
  refused([](WaveformWriter& to) { to.set(0, 2, 0); }, "below 2");
  refused([](WaveformWriter& to) { to.set(0, 1, 8); }, "3 bits");
  refused([](WaveformWriter& to) { to.finish(0); }, "tick 1 or later");
  refused(
      [](WaveformWriter& to) {
        to.set(4, 0, 1);
        to.set(3, 0, 0);
      },
      "4 or later");
  refused(
      [](WaveformWriter& to) {
        to.set(4, 0, 1);
        to.declare("late", 1);
      },
      "late");
}

// A disk that fills up: the sink's own error comes through, from either format.
TEST(SystolicWaveform, AFullDiskIsNamed) {
  class FullDisk final : public ByteSink {
   public:
    void append(std::string_view bytes) override {
      room_ -= static_cast<int64_t>(bytes.size());
      if (room_ < 0) {
        throw IoError("run.fst", "write", "No space left on device");
      }
    }

    void overwrite(int64_t /*offset*/, std::string_view /*bytes*/) override {}

   private:
    int64_t room_ = 500;
  };

  const AttentionCase test(small_machine(4, 4), {.queries = 4});
  FullDisk disk;
  FstWriter fst(disk, 100);
  EXPECT_THROW(write_schedule_waveform(test.config, test.schedule, fst), IoError);
  VcdWriter vcd(disk);
  EXPECT_THROW(write_schedule_waveform(test.config, test.schedule, vcd), IoError);
}

}  // namespace
}  // namespace flashloom::systolic
