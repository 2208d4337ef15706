#include <fmt/format.h>

#include <memory>
#include <string>

#include "cli/attend_check.h"
#include "cli/attend_device.h"
#include "cli/attend_passes.h"
#include "cli/attend_report.h"
#include "cli/attend_tiles.h"
#include "cli/commands.h"
#include "cli/instructions.h"
#include "cli/terminal.h"
#include "flashloom/core/parallel.h"
#include "flashloom/io/atomic_file.h"

namespace flashloom::cli {
namespace {

struct Options {
  AttendFlags call;
  std::string device = "cpu";
  std::string instructions = "best";
  int64_t threads = 0;
  double seconds = 0.3;
  std::string check = "auto";
  double tolerance = 1;
  std::string picture;
  int64_t picture_sequence = 0;
  int64_t picture_head = 0;
  bool json = false;
};

/// A reference that would take longer is left out unless asked for.
constexpr double kReferenceSeconds = 30;

void check(const Options& options, const AttendCase& call, const AttendResults& results,
           AttendReport& report) {
  const double guess = reference_seconds(call, report.counts.pairs, report.counts.all);
  if (options.check == "never") {
    report.unchecked = "--check never";
  } else if (options.check == "auto" && guess > kReferenceSeconds) {
    report.unchecked = fmt::format(
        "the float64 reference would take about {:.0f} seconds (--check always)", guess);
  } else {
    report.errors = check_results(call, results, options.tolerance);
  }
}

int run(const Options& options) {
  if (options.threads < 0 || options.seconds < 0 || options.tolerance < 0) {
    throw UsageError("--threads, --seconds, --tolerance: expected 0 or more");
  }
  set_thread_count(static_cast<int>(options.threads));
  const std::unique_ptr<AttendDevice> device = attend_device(options.device);
  const bool on_cpu = device->device().is_cpu();
  if (!on_cpu && (options.instructions != "best" || !options.picture.empty())) {
    throw UsageError("--instructions, --picture: of the CPU's kernels, not with --device cuda");
  }
  AttendReport report;
  report.runs_on = on_cpu ? choose_instructions(options.instructions) : device->name();
  report.threads = on_cpu ? thread_count() : 0;
  const AttendCase call(options.call);
  const AttendResults results = call.results(call.inputs().q.dtype);
  const AttendPlacedCall placed(*device, call, results);
  const AttendViews& views = placed.views();
  const AttentionChoice choice =
      attention_forward_backend(views.outputs, views.inputs, views.options);
  report.call = call.shape() + ": " + call.pattern();
  report.backend = attention_backend_name(choice.backend);
  report.why = options.call.backend == report.backend ? "" : choice.reason;
  const TileShape tile = attend_tile(call);
  report.tile = on_cpu ? tile : TileShape{};
  if (!options.picture.empty()) {
    write_file_atomically(options.picture,
                          draw_tiles(call, tile, options.picture_sequence, options.picture_head));
    note(fmt::format("wrote {}", options.picture));
  }
  report.counts = count_tiles(call, tile);
  run_passes(*device, placed, call, options.seconds, report);
  placed.download();
  check(options, call, results, report);
  options.json ? report.print_json() : report.print();
  return report.ok() ? kSuccess : kFailure;
}

constexpr const char* kExamples =
    "Examples:\n"
    "  flashloom attend --queries 2048 --causal --backward\n"
    "  flashloom attend --queries 8192 --causal --left 127 --picture window.svg\n"
    "  flashloom attend --packed 300,200,524 --causal --backward\n"
    "  flashloom attend --queries 4096 --density 0.1 --partial 0.5\n"
    "  flashloom attend --queries 1 --keys 32768 --heads 32 --kv-heads 8 --page-size 16\n"
    "  flashloom attend --queries 4096 --causal --dtype bf16 --backward --device cuda\n"
    "\n"
    "Exit code 1 if a result is further from the float64 reference than rounding explains. The\n"
    "bound is the larger of the operations at the rate of multiply-adds in registers and of the\n"
    "bytes of q, k, v and out at the rate of copying memory; a cache can beat the latter.";

}  // namespace

Command attend_command() {
  auto options = std::make_shared<Options>();
  AttendFlags* call = &options->call;
  return {
      .name = "attend",
      .summary = "Run one attention call: check it, time it, draw its tiles",
      .flags =
          {{"--batch", &call->batch, "sequences"},
           {"--heads", &call->heads, "query heads"},
           {"--kv-heads", &call->key_heads, "key-value heads (as --heads)"},
           {"--queries", &call->queries, "queries of a sequence"},
           {"--keys", &call->keys, "keys of a sequence (as --queries)"},
           {"--dim", &call->dim, "head dimension"},
           {"--value-dim", &call->value_dim, "dimension of values (as --dim)"},
           {"--dtype", &call->dtype, "storage; arithmetic is f32", false, {"f32", "bf16", "f16"}},
           {"--causal", &call->causal, "no key behind the query's position"},
           {"--left", &call->left, "most keys seen before the query's position"},
           {"--right", &call->right, "most keys seen behind it"},
           {"--offset", &call->offset, "position of query 0 (the last query beside the last key)"},
           {"--packed", &call->packed, "lengths of documents packed end to end: 300,200,524"},
           {"--packed-keys", &call->packed_keys, "lengths of their keys (as --packed)"},
           {"--used-queries", &call->used_queries, "rows in use of each sequence"},
           {"--used-keys", &call->used_keys, "keys in use of each sequence"},
           {"--page-size", &call->page_size, "keys a page of a paged cache, pages in random order"},
           {"--density", &call->density, "share of blocks that a random block mask keeps"},
           {"--block-rows", &call->block_rows, "queries a block (of the gate, too)"},
           {"--block-keys", &call->block_keys, "keys a block"},
           {"--partial", &call->partial, "share of kept blocks that keep half their pairs"},
           {"--drop", &call->drop, "share of tokens dropped before the call, by position"},
           {"--buckets", &call->buckets, "hash buckets; a pair is visible within one"},
           {"--exclude-self", &call->exclude_self, "a query does not see its own position"},
           {"--scale", &call->scale, "factor of scores; 0: 1 / sqrt(D)"},
           {"--softcap", &call->softcap, "c: scores become c tanh(s / c); 0: off"},
           {"--sinks", &call->sinks, "a sink for each head"},
           {"--alibi", &call->alibi, "ALiBi slopes 2^(-8 h / H)"},
           {"--bias",
            &call->bias,
            "added to scores: shared by heads, of keys alone, or of every pair",
            false,
            {"none", "shared", "keys", "full"}},
           {"--dropout", &call->dropout, "probability that a pair is dropped"},
           {"--gate",
            &call->gate,
            "skip blocks whose scores are all below the threshold",
            false,
            {"none", "absolute", "relative"}},
           {"--threshold", &call->threshold, "of the gate"},
           {"--backward", &call->backward, "gradients too"},
           {"--dlse", &call->dlse, "a gradient flows into the lse"},
           {"--entropy", &call->entropy, "entropy of rows, and its gradient with --backward"},
           {"--entropy-order", &call->entropy_order, "1: Shannon, else Renyi"},
           {"--parts", &call->parts, "work on the keys in so many parts and merge them"},
           {"--splits", &call->splits, "parts of the keys in decoding; 0: the kernel's choice"},
           {"--backend",
            &call->backend,
            "required backend",
            false,
            {"automatic", "cpu", "reference", "portable", "sm90"}},
           {"--device",
            &options->device,
            "where the call runs; the check runs on the CPU",
            false,
            {"cpu", "cuda"}},
           {"--instructions", &options->instructions, "of the CPU", false, instruction_choices()},
           {"--threads", &options->threads, "0: all cores"},
           {"--seed", &call->seed, "of all random numbers"},
           {"--seconds", &options->seconds, "least time to measure a pass"},
           {"--check",
            &options->check,
            "compare with the float64 reference; auto: if it takes below 30 seconds",
            false,
            {"auto", "always", "never"}},
           {"--tolerance", &options->tolerance, "multiplies the bounds of the check"},
           {"--picture", &options->picture, "write an SVG of the tiles that are visited"},
           {"--picture-sequence", &options->picture_sequence, "sequence drawn, unless packed"},
           {"--picture-head", &options->picture_head, "head drawn"},
           {"--json", &options->json, "one JSON object on standard output"}},
      .run = [options] { return run(*options); },
      .footer = kExamples};
}

}  // namespace flashloom::cli
