#pragma once

#include <cstdlib>
#include <optional>
#include <regex>
#include <string>

#include "tests/end_to_end/program_for_test.h"

namespace flashloom {

/// A page as a browser has it once its scripts have run.
struct OpenedPage {
  std::string html;         // the document, serialised
  std::string console;      // what scripts and the content policy complained of
  double milliseconds = 0;  // from the start of loading to the last plot, by the page's own clock

  bool has(const std::string& text) const { return html.find(text) != std::string::npos; }

  // What the page's script has made.
  std::string shown() const {
    const size_t first = html.find("<main");
    return html.substr(first, html.find("</main>") - first);
  }

  std::string title() const {
    const size_t first = html.find("<title>") + 7;
    return html.substr(first, html.find("</title>") - first);
  }

  int64_t count(const std::string& text) const {
    int64_t found = 0;
    for (size_t at = html.find(text); at != std::string::npos; at = html.find(text, at + 1)) {
      ++found;
    }
    return found;
  }
};

/// A headless Chromium on this machine; empty if there is none. Debian's chromium-headless-shell is
/// 64 MB to fetch and 290 MB unpacked with what it needs of chromium-common: .ci/run installs it,
/// scripts/test leaves that to whoever changes the page.
inline std::string browser() {
  for (const char* name : {"chromium-headless-shell", "chromium --headless",
                           "chromium-browser --headless", "google-chrome --headless"}) {
    const std::string program = std::string(name).substr(0, std::string(name).find(' '));
    if (std::system(("command -v " + program + " >/dev/null 2>&1").c_str()) == 0) {
      return name;
    }
  }
  return "";
}

/// Opens a file; `folder` takes the browser's profile and messages. `window` is "width,height".
inline OpenedPage open_page(const std::string& path, const std::string& folder,
                            const std::string& window = "1280,900") {
  // A sandbox needs rights that test machines often lack; a GPU there is none.
  const std::string line =
      "timeout 120 " + browser() + " --no-sandbox --disable-gpu --user-data-dir=" + folder +
      "/profile --window-size=" + window + " --enable-logging=stderr --dump-dom file://" + path +
      " 2>" + folder + "/browser.txt >" + folder + "/page.html </dev/null";
  if (std::system(line.c_str()) != 0) {
    throw std::runtime_error("the browser failed: " + read_for_test(folder + "/browser.txt"));
  }
  OpenedPage page = {.html = read_for_test(folder + "/page.html")};
  std::istringstream messages(read_for_test(folder + "/browser.txt"));
  for (std::string message; std::getline(messages, message);) {
    if (message.find("CONSOLE") != std::string::npos) {
      page.console += message + "\n";
    }
  }
  std::smatch ready;
  if (std::regex_search(page.html, ready, std::regex("data-ready-milliseconds=\"([0-9.]+)\""))) {
    page.milliseconds = std::stod(ready[1].str());
  }
  return page;
}

}  // namespace flashloom
