#pragma once

#include <algorithm>
#include <regex>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace flashloom {

/// A command that a guide shows.
struct GuideCommand {
  int line = 0;  // of the guide, from 1
  std::string text;
  std::string not_run;  // the guide's own reason why it is not run by the tests; empty: it is
};

/// What the code blocks of a guide hold.
struct Guide {
  std::vector<GuideCommand> commands;
  std::vector<std::pair<std::string, std::string>> files;  // name and content
};

struct GuideLine {
  int number;
  std::string text;
};

struct GuideBlock {
  std::vector<GuideLine> lines;
  bool shell = false;
  std::string not_run;
};

inline std::vector<GuideBlock> guide_blocks(std::string_view markdown) {
  std::vector<GuideBlock> blocks;
  std::istringstream text{std::string(markdown)};
  std::string line, mark;
  bool fenced = false, open = false;
  std::vector<GuideLine> blank;  // belongs to a block if the block goes on behind it
  const std::regex reason("^<!-- not run: (.*[^ ]) *-->$");
  for (int number = 1; std::getline(text, line); ++number) {
    if (line.starts_with("```")) {
      fenced = !fenced;
      if (fenced) {
        const std::string language = line.substr(3);
        blocks.push_back({.shell = language == "sh" || language == "bash" || language == "console",
                          .not_run = mark});
      }
      mark = "";
      open = false;
    } else if (fenced) {
      blocks.back().lines.push_back({number, line});
    } else if (line.starts_with("    ") && line.find_first_not_of(' ') != std::string::npos) {
      if (!open) {
        blocks.push_back({.not_run = mark});
        blank.clear();
      }
      open = true;
      auto& lines = blocks.back().lines;
      lines.insert(lines.end(), blank.begin(), blank.end());
      blank.clear();
      lines.push_back({number, line.substr(4)});
    } else if (line.find_first_not_of(' ') == std::string::npos) {
      blank.push_back({number, ""});
    } else {
      std::smatch found;
      mark = std::regex_match(line, found, reason) ? found[1].str() : "";
      open = false;
    }
  }
  return blocks;
}

inline bool is_guide_command(const std::string& line) {
  static const std::regex kCommand(
      "^([A-Z_]+=[^ ]* "
      ")*(flashloom|build/[a-z_]+/bin/[a-z_0-9]+|(scripts|tools|fuzz|bench|\\.ci)/[^ ]+|"
      "cmake|ctest|make|mpirun|python3?|pip|tensorboard|llama-[a-z-]+|git|sudo|apt-get|verilator|"
      "yosys)( .*)?$");
  return std::regex_match(line, kCommand);
}

/// Reads Markdown. Code blocks are indented by four spaces, or fenced.
/// - A block whose first line is `# name.toml` (any name with an ending) is that file.
/// - In a fence of sh, bash or console every line is a command; in other blocks a line is one if
///   its first word, after settings of the environment, is a program that guides call (flashloom,
///   cmake, mpirun, …) or a script of the project. A `\` at the end joins lines, `$ ` is left out,
///   and so is what stands behind two spaces and a `#`.
/// - `<!-- not run: REASON -->` on the last line of text before a block keeps its commands from
///   being run. A reason is needed: an empty one, as any comment like it, is no mark.
inline Guide read_guide(std::string_view markdown) {
  static const std::regex kFile("^# ([A-Za-z0-9_-]+\\.[a-z]+)$");
  static const std::regex kComment("  +#.*$");
  Guide guide;
  for (const GuideBlock& block : guide_blocks(markdown)) {
    std::smatch file;
    if (!block.lines.empty() && std::regex_match(block.lines.front().text, file, kFile)) {
      auto& [name, content] = guide.files.emplace_back(file[1].str(), "");
      for (const GuideLine& line : block.lines) {
        content += line.text + "\n";
      }
      continue;
    }
    for (size_t i = 0; i < block.lines.size(); ++i) {
      const int number = block.lines[i].number;
      std::string text = block.lines[i].text;
      while (text.ends_with("\\") && i + 1 < block.lines.size()) {
        const std::string& next = block.lines[++i].text;
        text.pop_back();
        text += next.substr(std::min(next.find_first_not_of(' '), next.size()));
      }
      text = std::regex_replace(text, kComment, "");
      text = text.starts_with("$ ") ? text.substr(2) : text;
      if (is_guide_command(text) || (block.shell && !text.empty() && text[0] != '#')) {
        guide.commands.push_back({.line = number, .text = text, .not_run = block.not_run});
      }
    }
  }
  return guide;
}

}  // namespace flashloom
