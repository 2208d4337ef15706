#pragma once

#include <string>

#include "cli/arguments.h"

namespace flashloom::cli {

// One factory a subcommand, each in a file of its own.
Command finetune_command();
Command evaluate_command();
Command prepare_command();
Command plan_command();
Command generate_command();
Command tokenize_command();
Command merge_command();
Command export_command();
Command inspect_command();
Command attend_command();
Command simulate_command();
Command report_command();
Command compare_command();

/// The page of the run in a directory; without `output`, report.html there. Throws IoError.
void write_report(const std::string& run, const std::string& output);

/// Version, build and CPU features in use, for --version.
std::string version_text();

}  // namespace flashloom::cli
