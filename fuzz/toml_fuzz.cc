#include <array>
#include <memory>

#include "cli/arguments.h"
#include "fuzz/fuzz_file.h"
#include "fuzz/targets.h"

namespace flashloom::fuzz {
namespace {

// A value of each type that a flag may have.
struct Values {
  bool truth = false;
  int64_t whole = 0;
  double number = 0;
  std::string text;
  std::vector<std::string> list;
  std::optional<int64_t> perhaps_whole;
  std::optional<double> perhaps_number;
  std::optional<std::string> perhaps_text;
};

cli::Command command(Values& v) {
  return {.name = "job",
          .summary = "Takes flags",
          .flags = {{"--truth", &v.truth, "true or false"},
                    {"--whole", &v.whole, "a whole number"},
                    {"--number", &v.number, "a number"},
                    {"--text", &v.text, "one of two words", false, {"one", "two"}},
                    {"--list", &v.list, "words", true},
                    {"--perhaps-whole", &v.perhaps_whole, "a whole number"},
                    {"--perhaps-number", &v.perhaps_number, "a number"},
                    {"--perhaps-text", &v.perhaps_text, "a word"}},
          .run = [] { return cli::kSuccess; }};
}

}  // namespace

void read_toml(std::string_view bytes) {
  static const FuzzFile kFile("fuzz.toml");
  Values values;
  std::string program = "flashloom", job = "job", flag = "--config", path = kFile.write(bytes);
  std::array<char*, 4> arguments = {program.data(), job.data(), flag.data(), path.data()};
  static_cast<void>(cli::run_program(static_cast<int>(arguments.size()), arguments.data(), "Fuzz",
                                     "0", {command(values)}));
}

}  // namespace flashloom::fuzz
