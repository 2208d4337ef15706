// Every command of the guides runs: docs/**/*.md and README.md, whatever is added there. Files and
// models that they name are tiny stand-ins; what cannot run here says why in the guide itself.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <regex>
#include <set>

#include "flashloom/comm/communicator.h"
#include "flashloom/io/temporary_directory_for_test.h"
#include "tests/end_to_end/program_for_test.h"
#include "tests/guide_commands_for_test.h"

namespace flashloom {
namespace {

namespace fs = std::filesystem;

std::vector<fs::path> guides() {
  const fs::path source = FLASHLOOM_SOURCE_DIR;
  std::vector<fs::path> paths = {source / "README.md", source / "fuzz/README.md"};
  for (const auto& entry : fs::recursive_directory_iterator(source / "docs")) {
    if (entry.path().extension() == ".md") {
      paths.push_back(entry.path());
    }
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

// What guides name: MODEL, the files of rows, a text, a task, and the folders that plots go to.
class Stage {
 public:
  Stage() {
    write_tiny_model(folder_ / "MODEL");
    fs::create_directory_symlink("MODEL", folder_ / "SmolLM2-135M-Instruct.Q4_1.gguf");
    std::string choices, text;
    for (int i = 0; i < 40; ++i) {
      text += "A window slides over a text, and each token is predicted once. ";
    }
    for (int i = 0; i < 3; ++i) {
      choices += R"({"question": "The sky is", "choices": ["blue", "a stone"], "answer": 0})"
                 "\n";
    }
    for (const char* name : {"train.jsonl", "held.jsonl", "mine.jsonl", "big.jsonl"}) {
      overwrite_for_test(folder_ / name, chat_rows(40, "It is the one."));
    }
    overwrite_for_test(folder_ / "book.txt", text);
    overwrite_for_test(folder_ / "questions.jsonl", choices);
    overwrite_for_test(folder_ / "input.txt", "What is number 3?\n\n");
    fs::create_directories(folder_ / "docs/images");
    fs::create_directories(folder_ / "bin");
    fs::create_symlink(FLASHLOOM_PROGRAM, folder_ / "bin/flashloom");
    // Guides that begin behind training have its adapter.
    const auto [code, output] =
        run("flashloom finetune --model MODEL --data train.jsonl --output adapter --steps 1 "
            "--samples 0");
    EXPECT_EQ(code, 0) << output;
  }

  void write(const std::string& name, const std::string& content) {
    overwrite_for_test(folder_ / name, content);
  }

  bool has_mpi() { return !mpi_version().empty() && run("mpirun --version").first == 0; }

  // Exit code and what the command wrote.
  std::pair<int, std::string> run(std::string command) {
    static const std::regex kBuilt("build/[a-z]+/bin/flashloom");
    static const std::regex kJob("<job>");
    static const std::regex kOutput("finetune .*--output ([^ ]+)");
    command = std::regex_replace(command, kBuilt, "flashloom");
    command = std::regex_replace(command, kJob, "finetune");
    // An example starts its own run, whatever an earlier one left under the same name.
    std::smatch output;
    if (std::regex_search(command, output, kOutput)) {
      fs::remove_all(folder_ / output[1].str());
    }
    const std::string line = fmt::format(
        "cd {0} && PATH={0}/bin:$PATH OMP_NUM_THREADS=1 OMPI_ALLOW_RUN_AS_ROOT=1 "
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1 timeout 120 sh -c "
        "'{1}' <input.txt >out.txt 2>&1",
        folder_.path(), std::regex_replace(command, std::regex("'"), "'\\''"));
    const int status = std::system(line.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : 128, read_for_test(folder_ / "out.txt")};
  }

 private:
  TemporaryDirectory folder_;
};

TEST(Guides, EveryCommandRuns) {
  static const std::regex kInstalls("(^|[ ;&|])(apt|apt-get|pip|sudo) ");
  int ran = 0;
  for (const fs::path& path : guides()) {
    const Guide guide = read_guide(read_for_test(path));
    const std::string name = fs::relative(path, FLASHLOOM_SOURCE_DIR).string();
    Stage stage;
    for (const auto& [file, content] : guide.files) {
      stage.write(file, content);
    }
    for (const GuideCommand& command : guide.commands) {
      const std::string not_run = command.text.starts_with("mpirun") && !stage.has_mpi()
                                      ? "needs a build with MPI, and mpirun"
                                      : command.not_run;
      if (!not_run.empty()) {
        fmt::print("{}:{}: not run ({}): {}\n", name, command.line, not_run, command.text);
        continue;
      }
      if (std::regex_search(command.text, kInstalls)) {
        ADD_FAILURE() << name << ":" << command.line
                      << ": tests install nothing; mark the block: " << command.text;
        continue;
      }
      const auto [code, text] = stage.run(command.text);
      EXPECT_EQ(code, 0) << name << ":" << command.line << ": " << command.text << "\n" << text;
      ++ran;
    }
  }
  EXPECT_GT(ran, 20);  // the guides of attention and of training alone have more
}

// A guide that names a flag which a job does not have, in a sentence or a table, misleads too.
TEST(Guides, NameNoFlagThatIsNotThere) {
  std::string help;
  for (const char* job : {"finetune", "prepare", "plan", "evaluate", "generate", "merge", "report",
                          "compare", "tokenize", "inspect", "attend", "simulate"}) {
    const TemporaryDirectory folder;
    help += run_program(std::string(job) + " --help", folder.path()).out;
  }
  // Of other programs: Google Test, CMake, ctest.
  const std::set<std::string> foreign = {"--logdir", "--bind-to", "--mca", "--allow-run-as-root",
                                         "--oversubscribe"};
  const std::regex flag("`(--[a-z][a-z0-9-]*)");
  for (const char* name : {"docs/fine_tuning.md", "docs/attention.md", "docs/reports.md",
                           "docs/systolic.md", "docs/distributed.md"}) {
    const std::string text = read_for_test(std::string(FLASHLOOM_SOURCE_DIR) + "/" + name);
    for (auto i = std::sregex_iterator(text.begin(), text.end(), flag); i != std::sregex_iterator();
         ++i) {
      const std::string found = (*i)[1].str();
      if (!foreign.contains(found)) {
        EXPECT_THAT(help, testing::ContainsRegex(found + "[^a-z0-9-]")) << name;
      }
    }
  }
}

}  // namespace
}  // namespace flashloom
