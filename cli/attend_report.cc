#include "cli/attend_report.h"

#include <fmt/format.h>

#include <algorithm>

#include "flashloom/json/json.h"

namespace flashloom::cli {
namespace {

Json to_json(const AttendRate& rate) {
  return {{"seconds", rate.seconds},
          {"gflops", rate.flops / rate.seconds * 1e-9},
          {"gbytes_per_second", rate.bytes / rate.seconds * 1e-9},
          {"bound", rate.by_memory() ? "memory" : "compute"},
          {"share_of_bound", rate.share()}};
}

}  // namespace

double AttendRate::share() const {
  return std::max(memory_seconds, compute_seconds) / seconds;
}

std::string AttendRate::line() const {
  return fmt::format("{:9}{:.4g} ms, {:.1f} GFLOP/s, {:.1f} GB/s: {:.0f} % of the {} bound", name,
                     seconds * 1e3, flops / seconds * 1e-9, bytes / seconds * 1e-9, 100 * share(),
                     by_memory() ? "memory" : compute_name);
}

bool AttendReport::ok() const {
  return std::all_of(errors.begin(), errors.end(), [](const auto& e) { return e.ok(); });
}

std::string AttendReport::verdict() const {
  return !unchecked.empty() ? "left out: " + unchecked : ok() ? "ok" : "FAILED";
}

void AttendReport::print() const {
  fmt::print("call     {}\n", call);
  fmt::print("backend  {} ({}{}){}\n", backend, runs_on,
             threads > 0 ? fmt::format(", {} threads", threads) : "",
             why.empty() ? "" : "; " + why);
  fmt::print("pairs    {:.0f} of {:.0f} visible ({:.4g} %)\n", counts.pairs, counts.all,
             100 * counts.pairs / std::max(counts.all, 1.0));
  if (tile.rows > 0) {
    fmt::print("tiles    {} full, {} border of {}, {} queries x {} keys each\n", counts.full,
               counts.border, counts.tiles, tile.rows, tile.keys);
  }
  for (const AttendRate& rate : rates) {
    fmt::print("{}\n", rate.line());
  }
  for (const AttendError& error : errors) {
    fmt::print("error    {:8}{:.2e} of {:.2e} allowed{}\n", error.name, error.error, error.bound,
               error.ok() ? "" : "  <- too much");
  }
  fmt::print("check    {}\n", verdict());
}

void AttendReport::print_json() const {
  Json json = {{"call", call}, {"backend", backend}};
  if (threads > 0) {
    json["instructions"] = runs_on;
    json["threads"] = threads;
  } else {
    json["device"] = runs_on;
  }
  json["pairs"] = {{"visible", counts.pairs}, {"all", counts.all}};
  if (tile.rows > 0) {
    json["tiles"] = {{"full", counts.full},
                     {"border", counts.border},
                     {"all", counts.tiles},
                     {"rows", tile.rows},
                     {"keys", tile.keys}};
  }
  for (const AttendRate& rate : rates) {
    json[rate.name] = to_json(rate);
  }
  json["errors"] = Json::object();
  for (const AttendError& error : errors) {
    json["errors"][error.name] = {{"error", error.error}, {"bound", error.bound}};
  }
  json["check"] = verdict();
  fmt::print("{}\n", json.dump());
}

}  // namespace flashloom::cli
