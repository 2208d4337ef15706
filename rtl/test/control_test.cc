// The control registers: what they refuse, runs one after another, and every way to fail.

#include <VSystem4x4.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "flashloom/core/error.h"
#include "flashloom/systolic/engine/engine.h"
#include "flashloom/systolic/isa/assembler.h"
#include "rtl/generate/control_registers.h"
#include "rtl/test/engine_bench.h"
#include "rtl/test/random_program.h"

namespace flashloom::rtl {
namespace {

using systolic::Field;
using systolic::Instruction;

constexpr uint32_t kStop = 0x1C000000;  // a fence for both engines, and the end

systolic::MachineConfig machine() {
  systolic::MachineConfig config;
  config.shape.rows = 4;
  config.shape.columns = 4;
  return config;
}

class Control : public testing::Test {
 protected:
  RandomProgram program(uint64_t seed) {
    std::mt19937_64 random(seed);
    return random_attention(machine(), random);
  }

  ControlState state() { return static_cast<ControlState>(bench.read("state")); }

  EngineBench<VSystem4x4> bench{machine()};
  BenchOptions options;
  systolic::MainMemory memory{4096};
};

TEST_F(Control, RegistersKeepWhatIsWritten) {
  options.host_stall_chance = 0.5;
  bench.begin(memory, options);
  EXPECT_EQ(bench.read("shape"), 0x00040004u);
  EXPECT_EQ(state(), ControlState::idle);
  const std::pair<std::string_view, uint32_t> kept[] = {
      {"mode", 1},          {"program_low", 0x87654320}, {"program_high", 0x5A},
      {"program_words", 7}, {"watchdog", 0xFFFFFFFF},    {"interrupt_enable", 3}};
  for (const auto& [name, value] : kept) {
    EXPECT_TRUE(bench.write(name, value)) << name;
  }
  for (const auto& [name, value] : kept) {
    EXPECT_EQ(bench.read(name), value) << name;
  }
}

TEST_F(Control, RefusesWhatMakesNoSense) {
  bench.begin(memory, options);
  EXPECT_FALSE(bench.write("cycles", 1)) << "only to read";
  EXPECT_FALSE(bench.write_at(0xFC, 1, ControlHost::kWholeWord)) << "no register";
  EXPECT_TRUE(bench.read_at(0xFC).refused) << "no register";
  EXPECT_TRUE(bench.read_at(control_register("push")).refused) << "only to write";
  EXPECT_FALSE(bench.write_at(control_register("mode"), 1, 0x1)) << "one byte";
  EXPECT_FALSE(bench.write_at(control_register("mode") + 1, 1, ControlHost::kWholeWord))
      << "between two registers";
  EXPECT_EQ(bench.read("mode"), 0u);
  EXPECT_TRUE(bench.write("program_words", 1));
  EXPECT_FALSE(bench.write("push", kStop)) << "the program is fetched";
  EXPECT_TRUE(bench.write("program_words", 0));
  for (int i = 0; i < kWordQueue; ++i) {
    EXPECT_TRUE(bench.write("push", 0)) << "word " << i;
  }
  EXPECT_FALSE(bench.write("push", kStop)) << "the queue is full";
  EXPECT_TRUE(bench.write("start", 0)) << "starts nothing";
  EXPECT_EQ(state(), ControlState::idle);
  EXPECT_TRUE(bench.write("start", 1));
  EXPECT_EQ(state(), ControlState::active);
  for (const std::string_view name : {"start", "mode", "program_words", "watchdog"}) {
    EXPECT_FALSE(bench.write(name, 1)) << name << " during a run";
  }
}

TEST_F(Control, RunsOneAfterAnother) {
  for (const bool fetch : {false, true}) {
    const RandomProgram first = program(3);
    options.fetch = fetch;
    systolic::MainMemory once = first.memory;
    const EngineTrace alone = bench.run(first.words, once, options);
    systolic::MainMemory again = first.memory;
    bench.begin(again, options);
    bench.start(first.words);
    bench.finish();
    EXPECT_TRUE(bench.write("interrupt", 1));
    EXPECT_EQ(bench.read("interrupt"), 0u);
    std::ranges::copy(first.memory.bytes(), again.bytes().begin());
    bench.clear_trace();
    bench.start(first.words);
    const EngineTrace second = bench.finish();
    EXPECT_EQ(second.control.at("cycles"), alone.control.at("cycles"));
    EXPECT_EQ(second.issues, alone.issues);
    EXPECT_EQ(second.control.at("words"), alone.control.at("words"));
    EXPECT_EQ(second.control.at("words_out"), 2 * alone.control.at("words_out"));
    EXPECT_TRUE(std::ranges::equal(once.bytes(), again.bytes()));
  }
}

TEST_F(Control, RunsAfterAFailure) {
  const RandomProgram good = program(4);
  systolic::MainMemory given = good.memory;
  bench.begin(given, options);
  bench.start({0xFFFFFFFF, 1, 2, 3});
  bench.finish();
  EXPECT_EQ(state(), ControlState::failed);
  EXPECT_FALSE(bench.write("push", 0)) << "of the program that failed";
  EXPECT_TRUE(bench.write("interrupt", 3));
  bench.clear_trace();
  options.fetch = true;
  EXPECT_TRUE(bench.write("program_low", bench.set_program(good.words)));
  EXPECT_TRUE(bench.write("program_words", static_cast<uint32_t>(good.words.size())));
  EXPECT_TRUE(bench.write("start", 1));
  const EngineTrace trace = bench.finish();
  EXPECT_EQ(state(), ControlState::done);
  EXPECT_EQ(trace.control.at("error"), 0u);
  systolic::MainMemory expected = good.memory;
  bench.run(good.words, expected, options);
  EXPECT_TRUE(std::ranges::equal(given.bytes(), expected.bytes()));
}

// Words that the decoder must refuse, made of a good program, and where.
struct Wrong {
  std::string_view name;
  ControlError error;
  std::function<void(Instruction&, std::vector<uint32_t>&)> spoil;  // the words of an instruction
};

TEST_F(Control, RefusesInstructionsThatTheSimulatorRefuses) {
  const Wrong cases[] = {
      {"a header of no kind", ControlError::kind,
       [](Instruction&, std::vector<uint32_t>& words) { words[0] |= 0xE0000000; }},
      {"a function of none", ControlError::function,
       [](Instruction& of, std::vector<uint32_t>& words) {
         words[0] |= of.kind == systolic::Kind::matrix ? 0x0000F800 : 0x0000F000;
       }},
      {"a reserved bit in the header", ControlError::reserved,
       [](Instruction&, std::vector<uint32_t>& words) { words[0] |= 1; }},
      {"a limit where there is none", ControlError::reserved,
       [](Instruction&, std::vector<uint32_t>& words) { words[2] |= 1; }},
  };
  std::mt19937_64 random(5);
  for (const Wrong& wrong : cases) {
    const RandomProgram good = random_attention(machine(), random);
    std::vector<Instruction> instructions = systolic::decode_program(good.words);
    // Some matrix instruction in the middle without a limit.
    auto at = static_cast<size_t>(random() % instructions.size());
    while (instructions[at].kind != systolic::Kind::matrix ||
           instructions[at].matrix_function() == systolic::Function::score_limit) {
      at = (at + 1) % instructions.size();
    }
    std::vector<uint32_t> words;
    for (size_t i = 0; i < instructions.size(); ++i) {
      const auto encoded = systolic::encode(instructions[i]);
      std::vector<uint32_t> own(
          encoded.begin(),
          encoded.begin() + systolic::kInstructionWords[static_cast<size_t>(instructions[i].kind)]);
      if (i == at) {
        wrong.spoil(instructions[i], own);
      }
      words.insert(words.end(), own.begin(), own.end());
    }
    systolic::MainMemory given = good.memory;
    const EngineTrace trace = bench.run(words, given, options);
    EXPECT_EQ(trace.control.at("state"), static_cast<uint32_t>(ControlState::failed)) << wrong.name;
    EXPECT_EQ(trace.control.at("error"), static_cast<uint32_t>(wrong.error)) << wrong.name;
    EXPECT_EQ(trace.control.at("error_instruction"), at) << wrong.name;
    EXPECT_EQ(trace.control.at("error_cycle"), trace.cycles - 1) << wrong.name;
    EXPECT_EQ(trace.control.at("interrupt"), 2u) << wrong.name;
    try {
      systolic::run_engine(machine(), words, {.memory_bytes = given.size()});
      ADD_FAILURE() << wrong.name << ": the simulator takes it";
    } catch (const InvalidArgument& error) {
      EXPECT_NE(std::string(error.what()).find("instruction " + std::to_string(at) + " "),
                std::string::npos)
          << error.what();
    }
  }
}

TEST_F(Control, NoticesAProgramWithoutAStop) {
  options.fetch = true;
  const EngineTrace trace = bench.run({0x18000000, 0x18000000}, memory, options);
  EXPECT_EQ(trace.control.at("error"), static_cast<uint32_t>(ControlError::no_stop));
  EXPECT_EQ(trace.control.at("error_instruction"), 2u);
}

TEST_F(Control, NoticesErrorsOfMemory) {
  const RandomProgram good = program(6);
  const auto run = [&](int64_t address) {
    options.memory.error_address = address;
    systolic::MainMemory given = good.memory;
    return bench.run(good.words, given, options).control.at("error");
  };
  const auto address_of = [&](bool store) {
    for (const Instruction& instruction : systolic::decode_program(good.words)) {
      if (instruction.kind == systolic::Kind::dma && instruction.is_store() == store) {
        return instruction[Field::memory_address];
      }
    }
    return int64_t{-1};
  };
  EXPECT_EQ(run(-1), 0u);
  EXPECT_EQ(run(address_of(false)), static_cast<uint32_t>(ControlError::load));
  EXPECT_EQ(run(address_of(true)), static_cast<uint32_t>(ControlError::store));
  options.fetch = true;
  EXPECT_EQ(run(0x200), static_cast<uint32_t>(ControlError::fetch)) << "the second burst";
}

TEST_F(Control, NamesWhoWaitsInADeadlock) {
  // The score's keys are never loaded: its semaphore stays empty.
  Instruction load{.kind = systolic::Kind::matrix};
  Instruction score{.kind = systolic::Kind::matrix};
  score[Field::function] = static_cast<int64_t>(systolic::Function::score);
  score[Field::acquire] = 1;
  score[Field::acquire_value] = 1;
  Instruction stop{.kind = systolic::Kind::fence};
  stop[Field::fence_matrix] = 1;
  stop[Field::stop] = 1;
  options.watchdog = 500;
  const std::vector<Instruction> instructions = {load, score, stop};
  const EngineTrace trace = bench.run(systolic::encode_program(instructions), memory, options);
  EXPECT_EQ(trace.control.at("error"), static_cast<uint32_t>(ControlError::watchdog));
  EXPECT_EQ(trace.control.at("error_instruction"), 2u) << "the fence";
  EXPECT_EQ(trace.control.at("issued"), 1u) << "so the second matrix instruction waits";
  EXPECT_GT(trace.control.at("waits_semaphore"), 450u);
}

}  // namespace
}  // namespace flashloom::rtl
