#include "flashloom/train/report/report_page.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>

#include "flashloom/io/checksum.h"
#include "flashloom/train/report/page/page_files.h"
#include "flashloom/train/report/run_outcome.h"

namespace flashloom {
namespace {

static_assert(std::endian::native == std::endian::little, "typed arrays of the page are so");

std::string base64(std::span<const std::byte> bytes) {
  constexpr std::string_view kDigits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    const size_t count = std::min<size_t>(3, bytes.size() - i);
    uint32_t word = 0;
    for (size_t k = 0; k < 3; ++k) {
      word = word << 8 | (k < count ? static_cast<uint32_t>(bytes[i + k]) : 0u);
    }
    for (size_t k = 0; k < 4; ++k) {
      text += k <= count ? kDigits[word >> (18 - 6 * k) & 63] : '=';
    }
  }
  return text;
}

// Numbers that the page shows otherwise, or not at all.
bool is_shown(const RunFolder& run, const MetricCurve& curve) {
  if (curve.name == "real_tokens_per_second") {
    const MetricCurve* all = run.curve("all_tokens_per_second");
    return all == nullptr || all->values != curve.values;
  }
  const auto names = {"epoch", "seconds", "guard_seconds", "eval_tokens"};
  return std::find(names.begin(), names.end(), curve.name) == names.end();
}

Json run_json(const RunFolder& run) {
  Json curves = Json::object();
  Json steps = Json::array();
  std::vector<const std::vector<int32_t>*> known;
  for (const MetricCurve& curve : run.curves) {
    if (!is_shown(run, curve)) {
      continue;
    }
    auto found = std::find_if(known.begin(), known.end(),
                              [&](const auto* other) { return *other == curve.steps; });
    if (found == known.end()) {
      found = known.insert(known.end(), &curve.steps);
      steps.push_back(base64(std::as_bytes(std::span(curve.steps))));
    }
    curves[curve.name] = {{"steps", found - known.begin()},
                          {"values", base64(std::as_bytes(std::span(curve.values)))}};
  }
  Json guards = Json::array();
  for (const GuardLine& line : run.guards) {
    guards.push_back({{"step", line.step}, {"guard", line.guard}, {"finding", line.finding}});
  }
  return {{"name", run.name},   {"path", run.path}, {"run", run.run},
          {"facts", run.facts}, {"guards", guards}, {"outcome", to_json(outcome_of(run))},
          {"steps", steps},     {"curves", curves}};
}

// JSON inside a script element: without '<' neither the element nor a comment can end or begin, and
// '>' and '&' cost nothing to write alike.
std::string embedded(const Json& json) {
  const std::string text = json.dump(-1, JsonText::replaced);
  std::string out;
  out.reserve(text.size());
  for (const char c : text) {
    switch (c) {
      case '<':
        out += "\\u003c";
        break;
      case '>':
        out += "\\u003e";
        break;
      case '&':
        out += "\\u0026";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string page(std::string_view title, const Json& json) {
  const std::string data = embedded(json);
  // Only a script that knows this number runs; what is in the data cannot know its own checksum.
  const std::string nonce = checksum(std::as_bytes(std::span(data)));
  std::string html = fmt::format(
      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
      "style-src 'unsafe-inline'; img-src data:; script-src 'nonce-{}'; base-uri 'none'; "
      "form-action 'none'\">\n"
      "<link rel=\"icon\" href=\"data:,\">\n<title>{}</title>\n<style>\n",
      nonce, escape_html(title));
  html += page_files::kPageCss;
  html +=
      "</style>\n</head>\n<body>\n<main id=\"page\"></main>\n"
      "<noscript><p>This report draws its plots with a script of its own; allow scripts for "
      "this file.</p></noscript>\n<script type=\"application/json\" id=\"data\">";
  html += data;
  html += fmt::format("</script>\n<script nonce=\"{}\">\n", nonce);
  html += page_files::kPlotJs;
  html += page_files::kPageJs;
  html += "</script>\n</body>\n</html>\n";
  return html;
}

}  // namespace

std::string escape_html(std::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string report_page(const RunFolder& run, std::string_view program) {
  const Json json = {{"program", program}, {"runs", Json::array({run_json(run)})}};
  return page(fmt::format("{} · Flashloom", run.name), json);
}

std::string comparison_page(std::span<const RunFolder> runs, const RunComparison& comparison,
                            std::string_view program) {
  Json list = Json::array();
  for (const RunFolder& run : runs) {
    list.push_back(run_json(run));
  }
  const Json json = {
      {"program", program}, {"comparison", to_readable_json(comparison)}, {"runs", list}};
  return page(fmt::format("{} · Flashloom", fmt::join(comparison.names, " · ")), json);
}

}  // namespace flashloom
