#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "flashloom/core/error.h"

namespace flashloom::cli {

/// Exit codes of the program.
inline constexpr int kSuccess = 0;
inline constexpr int kFailure = 1;        // bad data, a damaged file, not enough memory
inline constexpr int kUsage = 2;          // an unknown flag or key, a value out of range
inline constexpr int kInterrupted = 130;  // Ctrl-C; what was trained is saved

/// A flag or key that does not exist or has an impossible value: exit code 2.
class UsageError : public Error {
 public:
  using Error::Error;
};

/// Where a flag's value goes.
using Target =
    std::variant<bool*, int64_t*, double*, std::string*, std::vector<std::string>*,
                 std::optional<int64_t>*, std::optional<double>*, std::optional<std::string>*>;

struct Flag {
  std::string name;  // "--lr", or "model" for a positional argument
  Target target;
  std::string help;
  bool required = false;
  std::vector<std::string> choices = {};  // empty: any
};

/// A job of the program: `flashloom <name> flags…`.
struct Command {
  std::string name;
  std::string summary;
  std::vector<Flag> flags;
  std::function<int()> run;
  std::string footer = {};  // examples, shown by --help
};

/// Parses the command line (and `--config FILE.toml`, whose keys are the long flags without dashes;
/// flags override it), runs the command, turns exceptions into messages on standard error and exit
/// codes.
int run_program(int argc, char** argv, std::string_view description, std::string_view version,
                const std::vector<Command>& commands);

/// After this, SIGINT and SIGTERM only set interrupted(), so that a command can end in good order.
/// A second signal ends the program at once. A process that mpirun launched also heeds SIGUSR1,
/// which mpirun hands on, and the SIGCONT with which it begins to end a job.
void catch_interrupts(bool launched = false);
bool interrupted();

}  // namespace flashloom::cli
