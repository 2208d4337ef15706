#include "cli/arguments.h"

#include <fmt/format.h>
#include <toml++/toml.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <exception>
#include <memory>
#include <set>
#include <utility>

namespace flashloom::cli {
namespace {

volatile std::sig_atomic_t interrupt_count = 0;

bool is_launched = false;  // set before the handlers are

extern "C" void on_interrupt(int signal, siginfo_t* info, void* /*context*/) {
  // mpirun ends a job, on Ctrl-C or when a rank has died, with SIGCONT, SIGTERM and SIGKILL, its
  // odls_base_sigkill_timeout between them. The first is the one that leaves time to save, and the
  // second no second wish.
  const bool from_launcher = is_launched && info->si_pid == getppid();
  if ((signal == SIGCONT && !from_launcher) || (from_launcher && interrupt_count > 0)) {
    return;
  }
  interrupt_count = interrupt_count + 1;
  if (interrupt_count > 1) {
    std::signal(signal, SIG_DFL);
    std::raise(signal);
  }
}

std::string key_of(const Flag& flag) {
  return flag.name.starts_with("--") ? flag.name.substr(2) : std::string();
}

// One TOML value into a flag's target; throws UsageError on another type.
template <class Value>
void store(const Flag& flag, const toml::node& node, const std::string& where,
           std::string_view expected, Value* target) {
  auto value = node.value_exact<Value>();
  if constexpr (std::is_same_v<Value, std::string>) {
    if (const auto whole = node.value_exact<int64_t>()) {
      value = std::to_string(*whole);  // array = 16, where 8x4 is a choice too
    }
  }
  if (!value) {
    throw UsageError(fmt::format("{}: expected {}", where, expected));
  }
  if constexpr (std::is_same_v<Value, std::string>) {
    if (!flag.choices.empty() &&
        std::find(flag.choices.begin(), flag.choices.end(), *value) == flag.choices.end()) {
      throw UsageError(fmt::format("{}: expected one of {}, got \"{}\"", where,
                                   fmt::join(flag.choices, ", "), *value));
    }
  }
  *target = *value;
}

double number(const toml::node& node, const std::string& where) {
  if (const auto value = node.value<double>(); value && node.is_number()) {
    return *value;
  }
  throw UsageError(fmt::format("{}: expected a number", where));
}

void store(const Flag& flag, const toml::node& node, const std::string& where) {
  const auto visitor = [&](auto* target) {
    using Value = std::remove_pointer_t<decltype(target)>;
    if constexpr (std::is_same_v<Value, std::vector<std::string>>) {
      target->clear();
      const toml::array* array = node.as_array();
      if (array == nullptr) {
        throw UsageError(fmt::format("{}: expected a list of strings", where));
      }
      for (const toml::node& entry : *array) {
        store<std::string>(flag, entry, where, "a list of strings", &target->emplace_back());
      }
    } else if constexpr (std::is_same_v<Value, double> ||
                         std::is_same_v<Value, std::optional<double>>) {
      *target = number(node, where);
    } else if constexpr (std::is_same_v<Value, std::optional<int64_t>> ||
                         std::is_same_v<Value, int64_t>) {
      int64_t value = 0;
      store<int64_t>(flag, node, where, "a whole number", &value);
      *target = value;
    } else if constexpr (std::is_same_v<Value, bool>) {
      store<bool>(flag, node, where, "true or false", target);
    } else {
      std::string value;
      store<std::string>(flag, node, where, "a string", &value);
      *target = value;
    }
  };
  std::visit(visitor, flag.target);
}

// Reads a config file into the targets; returns the keys it set.
std::set<std::string> read_config(const std::string& path, const Command& command) {
  toml::table table;
  try {
    table = toml::parse_file(path);
  } catch (const toml::parse_error& error) {
    // A file that cannot be opened has no line.
    const auto line = error.source().begin.line;
    throw UsageError(line == 0 ? fmt::format("{}: {}", path, error.description())
                               : fmt::format("{}: line {}: {}", path, line, error.description()));
  }
  std::set<std::string> seen;
  for (const auto& [key, node] : table) {
    const auto flag = std::find_if(command.flags.begin(), command.flags.end(),
                                   [&](const Flag& f) { return key_of(f) == key.str(); });
    const std::string where =
        fmt::format("{}: line {}: {}", path, node.source().begin.line, key.str());
    if (flag == command.flags.end() || key.str().empty()) {
      throw UsageError(where + ": unknown key; `flashloom " + command.name +
                       " --help` lists the flags, whose names are the keys");
    }
    store(*flag, node, where);
    seen.insert(std::string(key.str()));
  }
  return seen;
}

// `--config FILE` or `--config=FILE`, before the flags proper, which override the file.
std::optional<std::string> config_path(int argc, char** argv) {
  std::optional<std::string> path;
  for (int i = 2; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--config" && i + 1 < argc) {
      path = argv[i + 1];
    } else if (argument.starts_with("--config=")) {
      path = argument.substr(9);
    }
  }
  return path;
}

void declare(CLI::App& app, const Flag& flag, bool given_by_file) {
  const auto visitor = [&](auto* target) -> CLI::Option* {
    using Value = std::remove_pointer_t<decltype(target)>;
    if constexpr (std::is_same_v<Value, bool>) {
      return app.add_flag(flag.name, *target, flag.help);
    } else {
      CLI::Option* option = app.add_option(flag.name, *target, flag.help);
      if constexpr (std::is_same_v<Value, std::vector<std::string>>) {
        option->delimiter(',')->take_all();
      }
      if constexpr (!std::is_same_v<Value, std::optional<int64_t>> &&
                    !std::is_same_v<Value, std::optional<double>> &&
                    !std::is_same_v<Value, std::optional<std::string>>) {
        option->capture_default_str();
      }
      return option;
    }
  };
  CLI::Option* option = std::visit(visitor, flag.target);
  if (!flag.choices.empty()) {
    option->check(CLI::IsMember(flag.choices));
  }
  if (flag.required && !given_by_file) {
    option->required();
  }
}

int fail(int code, const std::string& message) {
  fmt::print(stderr, "flashloom: {}\n", message);
  return code;
}

int run_command(const Command& command) {
  try {
    return command.run();
  } catch (const UsageError& error) {
    return fail(kUsage, error.what());
  } catch (const std::bad_alloc&) {
    return fail(kFailure, "out of memory");
  } catch (const std::exception& error) {
    return fail(kFailure, error.what());
  }
}

}  // namespace

void catch_interrupts(bool launched) {
  is_launched = launched;
  struct sigaction action = {};
  action.sa_sigaction = on_interrupt;
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  if (launched) {
    sigaction(SIGCONT, &action, nullptr);
    sigaction(SIGUSR1, &action, nullptr);  // mpirun hands this one on
  }
}

bool interrupted() {
  return interrupt_count > 0;
}

int run_program(int argc, char** argv, std::string_view description, std::string_view version,
                const std::vector<Command>& commands) {
  // A file beyond the shell's limit (ulimit -f) shall be an error like a full disk, not a signal.
  std::signal(SIGXFSZ, SIG_IGN);
  CLI::App app{std::string(description), "flashloom"};
  app.set_version_flag("--version", std::string(version));
  app.require_subcommand(1);
  app.failure_message([](const CLI::App*, const CLI::Error& error) {
    return fmt::format("flashloom: {}\nTry --help.\n", error.what());
  });
  std::string config;
  std::vector<std::pair<CLI::App*, const Command*>> subcommands;
  try {
    const auto path = config_path(argc, argv);
    for (const Command& command : commands) {
      CLI::App* sub = app.add_subcommand(command.name, command.summary);
      sub->footer(command.footer);
      std::set<std::string> given;
      if (path && argc > 1 && argv[1] == command.name) {
        given = read_config(*path, command);
      }
      for (const Flag& flag : command.flags) {
        declare(*sub, flag, given.contains(key_of(flag)));
      }
      sub->add_option("--config", config, "read flags from a TOML file; flags override it");
      subcommands.emplace_back(sub, &command);
    }
  } catch (const UsageError& error) {
    return fail(kUsage, error.what());
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? kSuccess : kUsage;
  }
  for (const auto& [sub, command] : subcommands) {
    if (sub->parsed()) {
      return run_command(*command);
    }
  }
  return kUsage;
}

}  // namespace flashloom::cli
