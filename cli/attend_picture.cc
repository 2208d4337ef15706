#include <fmt/format.h>

#include <algorithm>
#include <string>
#include <utility>

#include "cli/arguments.h"
#include "cli/attend_tiles.h"
#include "flashloom/core/parallel.h"

namespace flashloom::cli {
namespace {

// One colour scheme for light pages and one for dark ones; both carry their own ground, so that the
// text can be read wherever the picture is shown.
constexpr const char* kStyle = R"(<style>
  .ground { fill: #ffffff; } .text { fill: #24292f; font: 13px sans-serif; }
  .small { fill: #57606a; font: 12px sans-serif; }
  .none { fill: #f1f3f5; } .full { fill: #0a5fb4; } .border { fill: #f6cf8b; } .seen { fill: #c26a00; }
  .grid { stroke: #ffffff; stroke-width: 0.7; } .edge { fill: none; stroke: #57606a; }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #0d1117; } .text { fill: #e6edf3; } .small { fill: #9da7b3; }
    .none { fill: #21262d; } .full { fill: #58a6ff; } .border { fill: #6b4d1a; } .seen { fill: #f2b84b; }
    .grid { stroke: #0d1117; } .edge { stroke: #9da7b3; }
  }
</style>
)";

constexpr double kSide = 480;  // of the longer side of the map, in pixels
constexpr double kLeft = 54;
constexpr double kTop = 66;
constexpr double kLeast = 24;  // a single query would be a line otherwise

// The map of one call: places in rows and keys to places on the page.
struct Canvas {
  double rows, keys;
  double width, height;
  std::string body = {};

  Canvas(double all_rows, double all_keys) : rows(all_rows), keys(all_keys) {
    const double longer = std::max({rows, keys, 1.0});
    width = std::max(kSide * keys / longer, kLeast);
    height = std::max(kSide * rows / longer, kLeast);
  }

  double x(double key) const { return kLeft + width * key / std::max(keys, 1.0); }

  double y(double row) const { return kTop + height * row / std::max(rows, 1.0); }

  void rectangle(const char* kind, double first_row, double end_row, double first_key,
                 double end_key) {
    body += fmt::format(R"(<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>)"
                        "\n",
                        kind, x(first_key), y(first_row), x(end_key) - x(first_key),
                        y(end_row) - y(first_row));
  }

  void line(double row_a, double key_a, double row_b, double key_b) {
    body += fmt::format(R"(<line class="grid" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>)"
                        "\n",
                        x(key_a), y(row_a), x(key_b), y(row_b));
  }
};

// The visible pairs of a border tile, one row of pixels after the other. Not those of a partial
// block, which may be any.
void draw_pairs(Canvas& canvas, const HeadGeometry& geometry, TileShape tile, int64_t query_tile,
                const TileRun& run, double row, double key) {
  constexpr double kPixels = 2;
  const auto step =
      std::max<int64_t>(1, static_cast<int64_t>(kPixels * canvas.rows / canvas.height));
  const int64_t end_row = std::min<int64_t>((query_tile + 1) * tile.rows, geometry.outer.count);
  const int64_t first_key = int64_t{run.first} * tile.keys;
  const int64_t end_key =
      std::min<int64_t>(int64_t{run.first + run.count} * tile.keys, geometry.inner.count);
  std::string path;
  for (int64_t i = query_tile * tile.rows; i < end_row; i += step) {
    for (int64_t j = first_key; j < end_key;) {
      int64_t last = j;
      while (last < end_key && positions_visible(geometry, i, last)) {
        ++last;
      }
      if (last > j) {
        const auto at = static_cast<double>(i);
        const double width = canvas.x(static_cast<double>(last)) - canvas.x(static_cast<double>(j));
        const double height =
            canvas.y(std::min(at + static_cast<double>(step), static_cast<double>(end_row))) -
            canvas.y(at);
        path += fmt::format("M{:.1f} {:.1f}h{:.1f}v{:.1f}h-{:.1f}z",
                            canvas.x(key + static_cast<double>(j)), canvas.y(row + at), width,
                            height, width);
      }
      j = last + 1;
    }
  }
  canvas.body += fmt::format("<path class=\"seen\" d=\"{}\"/>\n", path);
}

void draw_sequence(Canvas& canvas, const HeadGeometry& geometry, TileShape tile, double row,
                   double key) {
  const double rows = geometry.outer.count;
  const double keys = geometry.inner.count;
  for_each_run(geometry, tile, [&](int64_t query_tile, const TileRun& run) {
    const double top = static_cast<double>(query_tile * tile.rows);
    const double left = static_cast<double>(int64_t{run.first} * tile.keys);
    canvas.rectangle((run.flags & kBorderChecks) == 0 ? "full" : "border", row + top,
                     row + std::min(top + tile.rows, rows), key + left,
                     key + std::min(left + static_cast<double>(run.count) * tile.keys, keys));
    if ((run.flags & kBorderChecks) != 0 && (run.flags & kRunBlockBits) == 0) {
      draw_pairs(canvas, geometry, tile, query_tile, run, row, key);
    }
  });
  for (int64_t i = tile.rows; i < geometry.outer.count; i += tile.rows) {
    const double down = row + static_cast<double>(i);
    canvas.line(down, key, down, key + keys);
  }
  for (int64_t j = tile.keys; j < geometry.inner.count; j += tile.keys) {
    const double across = key + static_cast<double>(j);
    canvas.line(row, across, row + rows, across);
  }
}

}  // namespace

std::string draw_tiles(const AttendCase& call, TileShape tile, int64_t sequence, int64_t head) {
  const GeometrySource source = geometry_source(call.inputs(), call.options());
  const bool packed = source.cu_query != nullptr;
  const auto in_range = [](int64_t value, int64_t limit, const char* flag) {
    if (value < 0 || value >= limit) {
      throw UsageError(fmt::format("{}: expected 0 to {}, got {}", flag, limit - 1, value));
    }
  };
  in_range(sequence, source.sequences, "--picture-sequence");
  in_range(head, source.heads, "--picture-head");
  Canvas canvas(packed ? source.total_query : source.max_query,
                packed ? source.total_key : source.max_key);
  canvas.rectangle("none", 0, canvas.rows, 0, canvas.keys);
  AttendCounts counts;
  for (int32_t s = 0; s < source.sequences; ++s) {
    if (!packed && s != sequence) {
      continue;
    }
    const SequenceRows rows = resolve_rows(source, s);
    const HeadGeometry geometry = resolve_head(source, rows, s, static_cast<int32_t>(head));
    draw_sequence(canvas, geometry, tile, rows.query_first, rows.key_first);
    add_tiles(geometry, tile, counts);
  }
  canvas.rectangle("edge", 0, canvas.rows, 0, canvas.keys);

  constexpr double kLegend = 96;
  const double page_width = std::max(kLeft + canvas.width + 24, 560.0);
  const double page_height = kTop + canvas.height + kLegend;
  std::string svg = fmt::format(
      R"(<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {0:.0f} {1:.0f}" width="{0:.0f}" height="{1:.0f}" role="img">)"
      "\n<title>Tiles of {2}</title>\n",
      page_width, page_height, call.pattern());
  svg += kStyle;
  svg += fmt::format(R"(<rect class="ground" width="{:.0f}" height="{:.0f}"/>)"
                     "\n",
                     page_width, page_height);
  const auto text = [&](const char* kind, double x, double y, const std::string& words,
                        const std::string& more = "") {
    svg += fmt::format(R"(<text class="{}" x="{:.1f}" y="{:.1f}"{}>{}</text>)"
                       "\n",
                       kind, x, y, more, words);
  };
  text("text", kLeft, 22, call.pattern());
  text("small", kLeft, 42,
       fmt::format("{:.0f} of {:.0f} pairs visible; tiles of {} queries x {} keys", counts.pairs,
                   counts.all, tile.rows, tile.keys));
  text("small", kLeft, kTop - 6, fmt::format("keys 0 to {:.0f}", canvas.keys));
  text("small", kLeft - 8, kTop + 12, fmt::format("queries 0 to {:.0f}", canvas.rows),
       fmt::format(R"x( transform="rotate(-90 {:.1f} {:.1f})" text-anchor="end")x", kLeft - 8,
                   kTop + 12));
  svg += canvas.body;
  double y = kTop + canvas.height + 24;
  const int64_t visited = counts.full + counts.border;
  const std::pair<const char*, std::string> legend[] = {
      {"full", fmt::format("{} full: every pair is visible, no check", counts.full)},
      {"border",
       fmt::format("{} border: pairs are checked, those in dark are visible", counts.border)},
      {"none", fmt::format("{} not visited", packed ? std::string("the rest")
                                                    : fmt::format("{}", counts.tiles - visited))}};
  for (const auto& [kind, words] : legend) {
    svg += fmt::format(R"(<rect class="{}" x="{:.0f}" y="{:.0f}" width="14" height="14"/>)"
                       "\n",
                       kind, kLeft, y - 11);
    text("text", kLeft + 22, y, words);
    y += 22;
  }
  return svg + "</svg>\n";
}

}  // namespace flashloom::cli
