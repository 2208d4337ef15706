#include "flashloom/systolic/isa/isa.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <string>

#include "flashloom/core/error.h"
#include "flashloom/core/philox.h"
#include "flashloom/systolic/isa/assembler.h"
#include "flashloom/systolic/isa/verilog_package.h"

namespace flashloom::systolic {
namespace {

Instruction random_instruction(RandomSequence& random) {
  Instruction instruction{.kind = static_cast<Kind>(random.below(kKindCount))};
  if (instruction.kind == Kind::matrix) {
    instruction[Field::function] = random.below(kFunctionCount);
  } else if (instruction.kind == Kind::dma) {
    instruction[Field::function] = random.below(2);
  }
  for (const FieldFormat& format : field_formats()) {
    if (format.kind != instruction.kind || format.field == Field::function ||
        (format.field == Field::limit && instruction.matrix_function() != Function::score_limit)) {
      continue;
    }
    const uint64_t bits = (uint64_t{random.bits()} << 32) | random.bits();
    int64_t value = static_cast<int64_t>(bits & ((uint64_t{1} << format.bits()) - 1));
    if (format.is_signed && (value >> (format.bits() - 1)) != 0) {
      value -= int64_t{1} << format.bits();
    }
    instruction[format.field] = value + format.bias;
  }
  return instruction;
}

TEST(SystolicIsa, EncodesAndDecodesEveryField) {
  RandomSequence random(1, RandomStream::test);
  std::vector<Instruction> program;
  for (int i = 0; i < 20'000; ++i) {
    program.push_back(random_instruction(random));
    ASSERT_EQ(decode(encode(program.back())), program.back());
  }
  EXPECT_EQ(decode_program(encode_program(program)), program);
  std::string text;
  for (const Instruction& instruction : program) {
    text += disassemble(instruction) + "\n";
  }
  EXPECT_EQ(assemble(text), program);
}

TEST(SystolicIsa, NoTwoFieldsShareABit) {
  for (const Kind kind : {Kind::fence, Kind::matrix, Kind::dma}) {
    std::set<int> used;
    for (int bit = 29; bit < 32; ++bit) {
      used.insert(bit);
    }
    for (const FieldFormat& format : field_formats()) {
      for (int i = 0; format.kind == kind && i < format.part_count; ++i) {
        const FieldPart& part = format.parts[i];
        EXPECT_LT(part.word, kInstructionWords[static_cast<size_t>(kind)]);
        for (int bit = part.low; bit <= part.high; ++bit) {
          EXPECT_TRUE(used.insert(32 * part.word + bit).second) << format.name << " bit " << bit;
        }
      }
    }
  }
}

// The published layout, by hand.
TEST(SystolicIsa, BitsAreThePublishedOnes) {
  Instruction score{.kind = Kind::matrix};
  score[Field::function] = 1;
  score[Field::semaphore] = 5;
  score[Field::acquire] = 1;
  score[Field::acquire_value] = 1;
  score[Field::release] = 1;
  score[Field::spad_row] = 0x123;
  score[Field::spad_stride] = -1;
  score[Field::reverse_in] = score[Field::reverse_out] = score[Field::delay] = 1;
  score[Field::accumulator_row] = 7;
  score[Field::zero] = 1;
  score[Field::causal] = 1;
  EXPECT_THAT(encode(score),
              testing::ElementsAre(
                  (1u << 29) | (5u << 24) | (1u << 23) | (1u << 20) | (1u << 19) | (1u << 11),
                  (0x123u << 12) | (31u << 7) | 0x70u, (7u << 12) | 0x60u, 0u));
  Instruction store{.kind = Kind::dma};
  store[Field::function] = 1;
  store[Field::repeat] = 128;
  store[Field::is_accumulator] = 1;
  store[Field::sram_row] = 1;
  store[Field::sram_stride] = 1;
  store[Field::memory_address] = 0x4'0000'0081;
  store[Field::memory_stride] = 0x18005;
  store[Field::row_bytes] = 1024;
  EXPECT_THAT(encode(store), testing::ElementsAre((2u << 29) | (1u << 12) | (128u << 3),
                                                  (1u << 12) | (1u << 7) | (1u << 6) | 3u,
                                                  (1u << 25) | (5u << 10) | 1023u, 0x0800'0001u));
}

std::string refusal(std::span<const uint32_t> words) {
  try {
    decode_program(words);
  } catch (const InvalidArgument& error) {
    return error.what();
  }
  return "accepted";
}

TEST(SystolicIsa, RefusesWhatIsNoInstruction) {
  using testing::HasSubstr;
  const uint32_t good = 1u << 28;
  EXPECT_THAT(refusal(std::array{good, 3u << 29}), HasSubstr("instruction 1 (word 1)"));
  EXPECT_THAT(refusal(std::array{3u << 29}), HasSubstr("type 3"));
  EXPECT_THAT(refusal(std::array{(1u << 29) | (6u << 11), 0u, 0u}), HasSubstr("function 6"));
  EXPECT_THAT(refusal(std::array{(2u << 29) | (2u << 12), 0u, 0u, 0u}), HasSubstr("function 2"));
  EXPECT_THAT(refusal(std::array{(1u << 29) | 1u, 0u, 0u}), HasSubstr("reserved bits of word 0"));
  EXPECT_THAT(refusal(std::array{1u << 29, 0u, 1u}), HasSubstr("reserved bits of word 2"));
  EXPECT_THAT(refusal(std::array{1u << 29, 0u}), HasSubstr("3 words"));
  EXPECT_THROW(assemble("score\nscores spad_row=1"), InvalidArgument);
  EXPECT_THROW(assemble("score spad_row=x"), InvalidArgument);
  EXPECT_THROW(assemble("score spad_stride=16"), InvalidArgument);
  EXPECT_THROW(assemble("fence spad_row=1"), InvalidArgument);
  try {
    assemble("fence stop=1\n\n# nothing\nscore_limit limit=257");
    FAIL() << "accepted";
  } catch (const InvalidArgument& error) {
    EXPECT_THAT(error.what(), HasSubstr("line 4"));
    EXPECT_THAT(error.what(), HasSubstr("from 1 to 256"));
  }
}

TEST(SystolicIsa, PackageHoldsEveryWindowAndField) {
  const std::string text = verilog_constants();
  for (const char* line :
       {"localparam int FUNCTION_SCORE_LIMIT = 5;", "localparam int F_MATRIX_LIMIT_BITS0 = 5;",
        "localparam int T_SCORE_BUSY = 3*R + C + P + 4;",
        "localparam int W_SCORE_EXP2_0_LAST = 2*R + P + 3;", "localparam int CTL_EXP2 = 8;",
        "localparam int W_SCORE_FLOW_UD_1_WAVE = WAVE_DOWN;"}) {
    EXPECT_THAT(text, testing::HasSubstr(line));
  }
}

}  // namespace
}  // namespace flashloom::systolic
