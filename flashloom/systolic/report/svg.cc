#include "flashloom/systolic/report/svg.h"

#include <fmt/format.h>

namespace flashloom::systolic {
namespace {

constexpr const char* kStyle = R"(<style>
  .ground { fill: #ffffff; } .text { fill: #24292f; font: 13px sans-serif; }
  .small { fill: #57606a; font: 11px sans-serif; } .faint { fill: #f1f3f5; }
  .edge { stroke: #8c959f; fill: none; } .grid { stroke: #d0d7de; fill: none; }
  .series0 { fill: #0a5fb4; stroke: #0a5fb4; } .series1 { fill: #c26a00; stroke: #c26a00; }
  .series2 { fill: #1a7f37; stroke: #1a7f37; } .series3 { fill: #8250df; stroke: #8250df; }
  .series4 { fill: #cf222e; stroke: #cf222e; } .series5 { fill: #6e7781; stroke: #6e7781; }
  rect { stroke: none; } line { stroke-width: 1.5; }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #0d1117; } .text { fill: #e6edf3; } .small { fill: #9da7b3; }
    .faint { fill: #21262d; } .edge { stroke: #6e7681; } .grid { stroke: #30363d; }
    .series0 { fill: #58a6ff; stroke: #58a6ff; } .series1 { fill: #f2b84b; stroke: #f2b84b; }
    .series2 { fill: #3fb950; stroke: #3fb950; } .series3 { fill: #bc8cff; stroke: #bc8cff; }
    .series4 { fill: #ff7b72; stroke: #ff7b72; } .series5 { fill: #8b949e; stroke: #8b949e; }
  }
</style>
)";

std::string hover_title(std::string_view hover) {
  return hover.empty() ? std::string() : fmt::format("<title>{}</title>", escape_xml(hover));
}

}  // namespace

std::string escape_xml(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    switch (c) {
      case '&':
        escaped += "&amp;";
        break;
      case '<':
        escaped += "&lt;";
        break;
      case '>':
        escaped += "&gt;";
        break;
      default:
        escaped += c;
    }
  }
  return escaped;
}

Svg::Svg(double width, double height, std::string_view title) {
  body_ = fmt::format(
      R"(<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0:.0f} {1:.0f}" width="{0:.0f}" height="{1:.0f}" role="img">)"
      "\n<title>{2}</title>\n{3}"
      R"(<rect class="ground" width="{0:.0f}" height="{1:.0f}"/>)"
      "\n",
      width, height, escape_xml(title), kStyle);
}

void Svg::rectangle(std::string_view kind, double x, double y, double width, double height,
                    std::string_view hover) {
  body_ += fmt::format(
      R"(<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">{}</rect>)"
      "\n",
      kind, x, y, width, height, hover_title(hover));
}

void Svg::line(std::string_view kind, double x0, double y0, double x1, double y1) {
  body_ += fmt::format(R"(<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>)"
                       "\n",
                       kind, x0, y0, x1, y1);
}

void Svg::circle(std::string_view kind, double x, double y, double radius, std::string_view hover) {
  body_ += fmt::format(R"(<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}">{}</circle>)"
                       "\n",
                       kind, x, y, radius, hover_title(hover));
}

void Svg::text(double x, double y, std::string_view words, std::string_view anchor, bool small) {
  body_ += fmt::format(R"(<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>)"
                       "\n",
                       small ? "small" : "text", x, y, anchor, escape_xml(words));
}

std::string Svg::finish() const {
  return body_ + "</svg>\n";
}

}  // namespace flashloom::systolic
