#include <fmt/format.h>
#include <hwy/targets.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <functional>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "cli/attend_case.h"
#include "cli/attend_check.h"
#include "cli/attend_tiles.h"
#include "cli/commands.h"
#include "cli/terminal.h"
#include "flashloom/core/memory_bandwidth.h"
#include "flashloom/core/parallel.h"
#include "flashloom/io/atomic_file.h"
#include "flashloom/ops/linear/peak_flops.h"

namespace flashloom::cli {
namespace {

struct Options {
  AttendFlags call;
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

struct Instructions {
  const char* flag;
  const char* name;
  int64_t target;
};

// What the attention kernels are compiled for, best first.
constexpr Instructions kInstructions[] = {{"avx512", "AVX-512", HWY_AVX3},
                                          {"avx2", "AVX2", HWY_AVX2},
                                          {"sse4", "SSE4", HWY_SSE4},
                                          {"portable", "portable code", HWY_STATIC_TARGET}};

// Makes the kernels use these; the best of the machine by default. Returns their name.
std::string choose_instructions(const std::string& flag) {
  for (const Instructions& choice : kInstructions) {
    const bool supported = (hwy::SupportedTargets() & choice.target) != 0;
    if (flag == choice.flag) {
      if (!supported) {
        throw UsageError(
            fmt::format("--instructions: expected what this machine has, got {}", choice.flag));
      }
      hwy::SetSupportedTargetsForTest(choice.target);
      hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    }
    if (supported && (flag == choice.flag || flag == "best")) {
      return choice.name;
    }
  }
  return hwy::TargetName(HWY_STATIC_TARGET);
}

class Workspace {
 public:
  explicit Workspace(int64_t bytes) : tensor_(DType::u8, {std::max<int64_t>(bytes, 1)}) {}

  std::span<std::byte> span() const {
    return {static_cast<std::byte*>(tensor_.view().data),
            static_cast<size_t>(tensor_.view().bytes())};
  }

 private:
  AttendTensor tensor_;
};

// Median seconds of at least three runs.
double median_seconds(double least, const std::function<void()>& run) {
  using Clock = std::chrono::steady_clock;
  run();
  std::vector<double> times;
  double spent = 0;
  while (times.size() < 3 || spent < least) {
    const Clock::time_point start = Clock::now();
    run();
    times.push_back(std::chrono::duration<double>(Clock::now() - start).count());
    spent += times.back();
  }
  std::nth_element(times.begin(), times.begin() + static_cast<ptrdiff_t>(times.size() / 2),
                   times.end());
  return times[times.size() / 2];
}

// The keys in parts, as a cache spread over machines would be worked on, and the parts merged.
class PartialForward {
 public:
  PartialForward(const AttendCase& call, const AttendResults& results, int64_t parts)
      : call_(call), results_(results) {
    const ConstTensorView& q = call.inputs().q;
    const int64_t keys = call.inputs().k.dim(2);
    const int64_t size = tile_count(keys, parts);
    const int64_t count = tile_count(keys, std::max<int64_t>(size, 1));
    outs_ = AttendTensor(DType::f32, {count, q.dim(0), q.dim(1), q.dim(2), call.inputs().v.dim(3)});
    logs_ = AttendTensor(DType::f32, {count, q.dim(0), q.dim(1), q.dim(2)});
    for (int64_t p = 0; p < count; ++p) {
      const int64_t first = p * size;
      const int64_t length = std::min(size, keys - first);
      Part part = {.outputs = {.out = outs_.view().select(0, p), .lse = logs_.view().select(0, p)},
                   .inputs = {q, call.inputs().k.slice(2, first, length),
                              call.inputs().v.slice(2, first, length)},
                   .options = call.options()};
      part.options.score.sinks = {};
      part.options.positions.query_start =
          call.options().positions.offset.value_or(keys - q.dim(2));
      part.options.positions.key_start = first;
      part.options.positions.offset = {};
      part.workspace = std::make_unique<Workspace>(
          attention_forward_workspace_bytes(part.outputs, part.inputs, part.options));
      parts_.push_back(std::move(part));
    }
  }

  void run() const {
    for (const Part& part : parts_) {
      attention_forward(part.outputs, part.inputs, part.workspace->span(), part.options);
    }
    attention_merge(results_.out, results_.lse, outs_, logs_, call_.options().score.sinks);
  }

 private:
  struct Part {
    AttentionOutputs outputs;
    AttentionInputs inputs;
    AttentionOptions options;
    std::unique_ptr<Workspace> workspace = {};
  };

  const AttendCase& call_;
  const AttendResults& results_;
  AttendTensor outs_, logs_;
  std::vector<Part> parts_;
};

// What a pass costs, and what the machine allows.
struct Rate {
  std::string name;
  double seconds;
  double flops;
  double bytes;
  double compute_seconds;  // bounds of this machine
  double memory_seconds;

  Rate(std::string pass, double time, double operations, double moved, double peak, double copy)
      : name(std::move(pass)),
        seconds(time),
        flops(operations),
        bytes(moved),
        compute_seconds(operations / peak),
        memory_seconds(moved / copy) {}

  bool by_memory() const { return memory_seconds > compute_seconds; }

  double share() const { return std::max(memory_seconds, compute_seconds) / seconds; }

  std::string line() const {
    return fmt::format("{:9}{:.4g} ms, {:.1f} GFLOP/s, {:.1f} GB/s: {:.0f} % of the {} bound", name,
                       seconds * 1e3, flops / seconds * 1e-9, bytes / seconds * 1e-9, 100 * share(),
                       by_memory() ? "memory" : "f32 multiply-add");
  }
};

nlohmann::ordered_json to_json(const Rate& rate) {
  return {{"seconds", rate.seconds},
          {"gflops", rate.flops / rate.seconds * 1e-9},
          {"gbytes_per_second", rate.bytes / rate.seconds * 1e-9},
          {"bound", rate.by_memory() ? "memory" : "compute"},
          {"share_of_bound", rate.share()}};
}

struct Report {
  std::string call;
  std::string backend;
  std::string instructions;
  std::string why;  // not the fastest backend
  AttendCounts counts;
  TileShape tile;
  std::vector<Rate> rates;
  std::vector<AttendError> errors;
  std::string unchecked;  // why there is no check

  bool ok() const {
    return std::all_of(errors.begin(), errors.end(), [](const auto& e) { return e.ok(); });
  }

  std::string verdict() const {
    return !unchecked.empty() ? "left out: " + unchecked : ok() ? "ok" : "FAILED";
  }

  void print() const {
    fmt::print("call     {}\n", call);
    fmt::print("backend  {} ({}, {} threads){}\n", backend, instructions, thread_count(),
               why.empty() ? "" : "; " + why);
    fmt::print("pairs    {:.0f} of {:.0f} visible ({:.4g} %)\n", counts.pairs, counts.all,
               100 * counts.pairs / std::max(counts.all, 1.0));
    fmt::print("tiles    {} full, {} border of {}, {} queries x {} keys each\n", counts.full,
               counts.border, counts.tiles, tile.rows, tile.keys);
    for (const Rate& rate : rates) {
      fmt::print("{}\n", rate.line());
    }
    for (const AttendError& error : errors) {
      fmt::print("error    {:8}{:.2e} of {:.2e} allowed{}\n", error.name, error.error, error.bound,
                 error.ok() ? "" : "  <- too much");
    }
    fmt::print("check    {}\n", verdict());
  }

  void print_json() const {
    nlohmann::ordered_json json = {{"call", call},
                                   {"backend", backend},
                                   {"instructions", instructions},
                                   {"threads", thread_count()},
                                   {"pairs", {{"visible", counts.pairs}, {"all", counts.all}}},
                                   {"tiles",
                                    {{"full", counts.full},
                                     {"border", counts.border},
                                     {"all", counts.tiles},
                                     {"rows", tile.rows},
                                     {"keys", tile.keys}}}};
    for (const Rate& rate : rates) {
      json[rate.name] = to_json(rate);
    }
    json["errors"] = nlohmann::ordered_json::object();
    for (const AttendError& error : errors) {
      json["errors"][error.name] = {{"error", error.error}, {"bound", error.bound}};
    }
    json["check"] = verdict();
    fmt::print("{}\n", json.dump());
  }
};

// Runs and times the passes; the results hold what the last runs wrote.
void run_passes(const Options& options, const AttendCase& call, const AttendResults& results,
                Report& report) {
  const AttentionOutputs outputs = call.outputs(results);
  const AttentionInputs& inputs = call.inputs();
  const double peak = measure_peak_flops();
  const auto dim = static_cast<double>(inputs.q.dim(-1));
  const auto value_dim = static_cast<double>(inputs.v.dim(-1));
  const auto element = static_cast<double>(dtype_bytes(inputs.q.dtype));
  const double rows = report.counts.query_rows + report.counts.key_rows;
  const double bytes = rows * (dim + value_dim) * element;  // q, out; k, v
  // Cores do at most some 30 operations while memory moves a byte: with three times as many, memory
  // is not what limits a call. 128 MB are more than a last-level cache holds.
  const bool may_wait_for_memory = 2 * (dim + value_dim) * report.counts.pairs < 100 * bytes;
  const double copy = may_wait_for_memory ? measure_copy_bytes_per_second(int64_t{128} << 20)
                                          : std::numeric_limits<double>::infinity();
  double seconds = 0;
  if (call.flags().parts > 1) {
    const PartialForward parts(call, results, call.flags().parts);
    seconds = median_seconds(options.seconds, [&] { parts.run(); });
  } else {
    const Workspace workspace(attention_forward_workspace_bytes(outputs, inputs, call.options()));
    seconds = median_seconds(options.seconds, [&] {
      attention_forward(outputs, inputs, workspace.span(), call.options());
    });
  }
  report.rates.emplace_back("forward", seconds, 2 * (dim + value_dim) * report.counts.pairs, bytes,
                            peak, copy);
  if (!call.flags().backward) {
    return;
  }
  const AttentionGradients gradients = call.gradients(results);
  const AttentionSaved saved = call.saved(results);
  const Workspace workspace(
      attention_backward_workspace_bytes(gradients, inputs, saved, call.options()));
  seconds = median_seconds(options.seconds, [&] {
    attention_backward(gradients, inputs, saved, workspace.span(), call.options());
  });
  // Scores, dq and dk over D; dp and dv over E. Twice the tensors of the forward pass move.
  report.rates.emplace_back("backward", seconds, (6 * dim + 4 * value_dim) * report.counts.pairs,
                            2 * bytes, peak, copy);
}

void check(const Options& options, const AttendCase& call, const AttendResults& results,
           Report& report) {
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
  Report report;
  report.instructions = choose_instructions(options.instructions);
  const AttendCase call(options.call);
  const AttendResults results = call.results(call.inputs().q.dtype);
  const AttentionChoice choice =
      attention_forward_backend(call.outputs(results), call.inputs(), call.options());
  report.call = call.shape() + ": " + call.pattern();
  report.backend = attention_backend_name(choice.backend);
  report.why = choice.backend == AttentionBackend::cpu ? "" : choice.reason;
  report.tile = attend_tile(call);
  if (!options.picture.empty()) {
    write_file_atomically(options.picture, draw_tiles(call, report.tile, options.picture_sequence,
                                                      options.picture_head));
    note(fmt::format("wrote {}", options.picture));
  }
  report.counts = count_tiles(call, report.tile);
  run_passes(options, call, results, report);
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
            {"automatic", "cpu", "reference"}},
           {"--instructions",
            &options->instructions,
            "of the CPU",
            false,
            {"best", "avx512", "avx2", "sse4", "portable"}},
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
