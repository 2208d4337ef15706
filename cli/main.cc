#include <fmt/format.h>

#include <cstdio>

#include "cli/commands.h"
#include "cli/ranks.h"
#include "flashloom/comm/communicator.h"

int main(int argc, char** argv) {
  using namespace flashloom::cli;
  try {
    refuse_ranks(argc, argv);
  } catch (const UsageError& error) {
    if (flashloom::launched_rank() == 0) {
      fmt::print(stderr, "flashloom: {}\n", error.what());
    }
    return kUsage;
  }
  return run_program(
      argc, argv,
      "Flashloom fine-tunes, evaluates and runs language models on CPUs, without Python.\n"
      "MODEL is a Hugging Face directory or a GGUF file. Exit codes: 0 done, 1 failed, 2 wrong\n"
      "usage, 130 interrupted (what was trained is saved).",
      version_text(),
      {finetune_command(), prepare_command(), plan_command(), evaluate_command(),
       generate_command(), merge_command(), export_command(), report_command(), compare_command(),
       tokenize_command(), inspect_command(), attend_command(), simulate_command()});
}
