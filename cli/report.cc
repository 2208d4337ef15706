#include <fmt/format.h>

#include <memory>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/terminal.h"
#include "flashloom/core/progress.h"
#include "flashloom/io/atomic_file.h"
#include "flashloom/train/report/report_page.h"

namespace flashloom::cli {
namespace {

constexpr std::string_view kProgram = "flashloom " FLASHLOOM_VERSION;

struct ReportFlags {
  std::string run;
  std::string output;
};

struct CompareFlags {
  std::vector<std::string> runs;
  std::string output;
  bool json = false;
};

void write_page(const std::string& path, const std::string& page) {
  write_file_atomically(path, page);
  note(fmt::format("wrote {} ({}); open it in a browser", path,
                   format_bytes(static_cast<int64_t>(page.size()))));
}

int compare(const CompareFlags& flags) {
  if (flags.runs.size() < 2) {
    throw UsageError("compare: expected two runs or more");
  }
  std::vector<RunFolder> runs;
  runs.reserve(flags.runs.size());
  for (const std::string& path : flags.runs) {
    runs.push_back(read_run_folder(path));
  }
  const RunComparison comparison = compare_runs(runs);
  if (flags.json) {
    fmt::print("{}\n", to_json(comparison).dump());
  } else {
    fmt::print("{}", describe(comparison));
  }
  if (!flags.output.empty()) {
    write_page(flags.output, comparison_page(runs, comparison, kProgram));
  }
  return kSuccess;
}

}  // namespace

void write_report(const std::string& run, const std::string& output) {
  write_page(output.empty() ? run + "/report.html" : output,
             report_page(read_run_folder(run), kProgram));
}

Command report_command() {
  auto flags = std::make_shared<ReportFlags>();
  return {.name = "report",
          .summary = "Write a run's report, one HTML page",
          .flags = {{"run", &flags->run, "--output of a finetune, finished or not", true},
                    {"--output", &flags->output, "the page; default RUN/report.html"}},
          .run =
              [flags] {
                write_report(flags->run, flags->output);
                return kSuccess;
              },
          .footer = "Example: flashloom report adapter"};
}

Command compare_command() {
  auto flags = std::make_shared<CompareFlags>();
  return {.name = "compare",
          .summary = "Say what differed between runs: settings, data, outcome",
          .flags = {{"runs", &flags->runs, "--output of each finetune", true},
                    {"--output", &flags->output, "an HTML page with the curves over one another"},
                    {"--json", &flags->json, "one JSON object on standard output"}},
          .run = [flags] { return compare(*flags); },
          .footer = "Example: flashloom compare adapter-8 adapter-16 --output compare.html"};
}

}  // namespace flashloom::cli
