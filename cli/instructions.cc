#include "cli/instructions.h"

#include <fmt/format.h>
#include <hwy/targets.h>

#include "cli/arguments.h"

namespace flashloom::cli {
namespace {

struct Instructions {
  const char* flag;
  const char* name;
  int64_t target;
};

// What kernels are compiled for, best first.
constexpr Instructions kInstructions[] = {{"avx512", "AVX-512", HWY_AVX3},
                                          {"avx2", "AVX2", HWY_AVX2},
                                          {"sse4", "SSE4", HWY_SSE4},
                                          {"portable", "portable code", HWY_STATIC_TARGET}};

}  // namespace

std::vector<std::string> instruction_choices() {
  std::vector<std::string> choices = {"best"};
  for (const Instructions& choice : kInstructions) {
    choices.emplace_back(choice.flag);
  }
  return choices;
}

std::string choose_instructions(const std::string& flag) {
  for (const Instructions& choice : kInstructions) {
    const bool supported = (hwy::SupportedTargets() & choice.target) != 0;
    if (flag == choice.flag) {
      if (!supported) {
        throw UsageError(
            fmt::format("--instructions: expected what this machine has, got {}", choice.flag));
      }
      hwy::SetSupportedTargetsForTest(choice.target);
      hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    }
    if (supported && (flag == choice.flag || flag == "best")) {
      return choice.name;
    }
  }
  return hwy::TargetName(HWY_STATIC_TARGET);
}

}  // namespace flashloom::cli
