#include "flashloom/train/report/report_page.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>
#include <regex>

#include "flashloom/train/report/page/page_files.h"

namespace flashloom {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr const char* kHostile =
    "</script><script>document.title='taken'</script><!--<img src=x "
    "onerror=alert(1)>\"'&\xe2\x80\xa8\xff";

RunFolder hostile_run() {
  RunFolder run = {.path = kHostile, .name = kHostile};
  run.run = {{"settings", {{kHostile, kHostile}}}};
  run.facts = {{"samples", {{{"prompt", kHostile}, {"expected", kHostile}, {"after", kHostile}}}},
               {"model", {{"path", kHostile}}}};
  run.guards = {{1, kHostile, kHostile}};
  run.curves = {{.name = "loss", .steps = {1, 2}, .values = {3, 2}}};
  return run;
}

std::string data_of(const std::string& page) {
  const std::string begin = "id=\"data\">";
  const size_t first = page.find(begin) + begin.size();
  return page.substr(first, page.find("</script>", first) - first);
}

TEST(ReportPage, LetsNoTextOfARunBecomeMarkup) {
  const std::string page = report_page(hostile_run(), "flashloom");
  const std::string data = data_of(page);
  EXPECT_THAT(data, Not(testing::ContainsRegex("[<>&]")));
  // It is JSON all the same, with what is no UTF-8 replaced.
  const auto json = nlohmann::json::parse(data);
  std::string expected = kHostile;
  expected.replace(expected.size() - 1, 1, "\xef\xbf\xbd");
  EXPECT_EQ(json.at("runs").at(0).at("name"), expected);
  EXPECT_EQ(json.at("runs").at(0).at("guards").at(0).at("finding"), expected);
  // Two elements of script, both of the page, and a title that is text.
  const std::regex script("<script");
  EXPECT_EQ(std::distance(std::sregex_iterator(page.begin(), page.end(), script), {}), 2);
  EXPECT_THAT(page, HasSubstr("<title>&lt;/script&gt;&lt;script&gt;document.title=&#39;taken"));
}

TEST(ReportPage, RunsItsOwnScriptAlone) {
  const std::string page = report_page(hostile_run(), "flashloom");
  std::smatch nonce;
  ASSERT_TRUE(std::regex_search(page, nonce, std::regex("script-src 'nonce-([0-9a-f]{32})'")));
  EXPECT_THAT(page, HasSubstr("<script nonce=\"" + nonce[1].str() + "\">"));
  EXPECT_THAT(page, HasSubstr("default-src 'none'"));
  EXPECT_THAT(data_of(page), Not(HasSubstr(nonce[1].str())));
}

TEST(ReportPage, NeedsNothingFromElsewhere) {
  const std::string page = report_page(hostile_run(), "flashloom");
  const std::regex outside(
      "(src|href)=\"(?!data:)|@import|url\\((?!#)|fetch\\(|XMLHttpRequest|import\\(");
  std::smatch found;
  EXPECT_FALSE(std::regex_search(page, found, outside)) << found.str();
  // The one address is the name of SVG's vocabulary, which is never loaded.
  const std::regex address("https?://[a-z0-9./]*");
  for (auto i = std::sregex_iterator(page.begin(), page.end(), address);
       i != std::sregex_iterator(); ++i) {
    EXPECT_EQ(i->str(), "http://www.w3.org/2000/svg");
  }
}

TEST(ReportPage, StoresCurvesAsLittleEndianNumbers) {
  RunFolder run = {.name = "run"};
  run.curves = {{.name = "loss", .steps = {1, 2, 258}, .values = {1.0f, -2.0f, 0.5f}},
                {.name = "mfu", .steps = {1, 2, 258}, .values = {0, 0, 0}},
                {.name = "eval_loss", .steps = {2}, .values = {1.0f}},
                {.name = "epoch", .steps = {1}, .values = {0}}};
  const auto json = nlohmann::json::parse(data_of(report_page(run, ""))).at("runs").at(0);
  // 01000000 02000000 02010000; two curves share them.
  EXPECT_EQ(json.at("steps").dump(), R"(["AQAAAAIAAAACAQAA","AgAAAA=="])");
  // 1 = 0000803f, -2 = 000000c0, 0.5 = 0000003f
  EXPECT_EQ(json.at("curves").at("loss").dump(), R"({"steps":0,"values":"AACAPwAAAMAAAAA/"})");
  EXPECT_EQ(json.at("curves").at("mfu").at("steps"), 0);
  EXPECT_EQ(json.at("curves").at("eval_loss").dump(), R"({"steps":1,"values":"AACAPw=="})");
  EXPECT_FALSE(json.at("curves").contains("epoch"));
}

TEST(ReportPage, EscapesWhatHtmlReads) {
  EXPECT_EQ(escape_html("a<b>&\"'"), "a&lt;b&gt;&amp;&quot;&#39;");
}

}  // namespace
}  // namespace flashloom
