#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/guide_commands_for_test.h"

namespace flashloom {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

std::vector<std::string> texts(const Guide& guide) {
  std::vector<std::string> list;
  for (const GuideCommand& command : guide.commands) {
    list.push_back(command.text);
  }
  return list;
}

TEST(GuideCommands, FindsCommandsInBlocksAlone) {
  const Guide guide = read_guide(
      "# Title\n\n    flashloom plan --model M   # what it needs\n    held-out loss 2\n\n"
      "flashloom in a sentence\n`flashloom inline`\n\n"
      "```\nflashloom fenced\noutput of it\n```\n\n"
      "    A=1 B=2 mpirun -n 2 flashloom x \\\n        --more\n    scripts/demo\n    $ cmake "
      "--build y\n");
  EXPECT_THAT(texts(guide), ElementsAre("flashloom plan --model M", "flashloom fenced",
                                        "A=1 B=2 mpirun -n 2 flashloom x --more", "scripts/demo",
                                        "cmake --build y"));
  EXPECT_EQ(guide.commands[0].line, 3);
  EXPECT_EQ(guide.commands[1].line, 10);
  EXPECT_EQ(guide.commands[3].line, 16);
}

TEST(GuideCommands, TakesEveryLineOfAShellFence) {
  EXPECT_THAT(
      texts(read_guide("```sh\nls\n\n# a comment\npython3 x.py\n```\n```json\n{\"a\": 1}\n```\n")),
      ElementsAre("ls", "python3 x.py"));
}

TEST(GuideCommands, ReadsFilesThatAGuideShows) {
  const Guide guide =
      read_guide("    # run.toml\n    lr = 1\n\n    data = [\"x\"]\n\ntext\n\n    # no file\n");
  ASSERT_EQ(guide.files.size(), 1u);
  EXPECT_EQ(guide.files[0].first, "run.toml");
  EXPECT_EQ(guide.files[0].second, "# run.toml\nlr = 1\n\ndata = [\"x\"]\n");
  EXPECT_THAT(guide.commands, IsEmpty());
}

TEST(GuideCommands, NeedsAReasonNotToRunABlock) {
  const Guide guide = read_guide(
      "<!-- not run: needs a GPU -->\n\n    flashloom a\n    flashloom b\n\ntext\n\n    flashloom "
      "c\n\n"
      "<!-- not run: -->\n    flashloom d\n\n<!-- not run: no card -->\n```sh\nflashloom e\n```\n");
  std::vector<std::string> reasons;
  for (const GuideCommand& command : guide.commands) {
    reasons.push_back(command.not_run);
  }
  EXPECT_THAT(reasons, ElementsAre("needs a GPU", "needs a GPU", "", "", "no card"));
}

}  // namespace
}  // namespace flashloom
