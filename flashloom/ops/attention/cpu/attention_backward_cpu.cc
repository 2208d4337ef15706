#include <algorithm>
#include <cmath>
#include <numbers>

#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/cpu/attention_backward_plan.h"
#include "flashloom/ops/attention/cpu/attention_cpu.h"
#include "flashloom/ops/attention/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "flashloom/ops/attention/cpu/attention_backward_cpu.cc"
// clang-format off: the order matters
#include "hwy/foreach_target.h"
// clang-format on
#include "flashloom/ops/attention/cpu/backward_chunk-inl.h"
#include "flashloom/ops/attention/cpu/backward_rows-inl.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();

namespace flashloom {
namespace HWY_NAMESPACE {
namespace {

constexpr int kBackwardVectors = 3;

void backward_chunk(const BackwardPlan& plan, int32_t sequence, int32_t key_head, int64_t chunk,
                    float* memory) {
  BackwardChunk<kBackwardVectors>(plan, sequence, key_head, chunk, memory).run();
}

void backward_rows(const BackwardPlan& plan, int32_t sequence, int32_t head, int64_t first,
                   int64_t last) {
  prepare_rows(plan, sequence, head, first, last);
}

void reduce_queries(const BackwardPlan& plan, int32_t sequence, int32_t head, int64_t first,
                    int64_t last) {
  sum_chunks(plan, sequence, head, first, last);
}

BackwardTarget backward_target() {
  return {kBackwardVectors * kLanes, bf16_pairs_available()};
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace flashloom

HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace flashloom {

HWY_EXPORT(backward_rows);
HWY_EXPORT(backward_chunk);
HWY_EXPORT(reduce_queries);
HWY_EXPORT(backward_target);

namespace {

constexpr int64_t kRowsATask = 128;

void clear_unless(bool accumulate, const TensorView& dbias) {
  for (int64_t b = 0; !accumulate && b < dbias.dim(0); ++b) {
    for (int64_t h = 0; h < dbias.dim(1); ++h) {
      const TensorView rows = dbias.select(0, b).select(0, h);
      for (int64_t i = 0; i < rows.dim(0); ++i) {
        std::fill_n(rows.as<float>() + i * rows.stride(0), rows.dim(1), 0.0f);
      }
    }
  }
}

// A sink is a key of value 0: its dP is 0.
void backward_sinks(const BackwardPlan& plan) {
  const TensorView& dsinks = plan.gradients->dsinks;
  const ConstTensorView& sinks = plan.options->score.sinks;
  const double order = plan.saved->entropy_order;
  parallel_for(plan.source.heads, [&](int64_t head) {
    const double sink = sinks.as<float>()[head * sinks.stride(0)];
    double sum = 0;
    for (int32_t b = 0; b < plan.source.sequences; ++b) {
      const SequenceRows rows = resolve_rows(plan.source, b);
      const HeadGeometry geometry = resolve_head(plan.source, rows, b, static_cast<int32_t>(head));
      const int64_t first = head * plan.total_rows + plan.first_row(b, rows);
      for (int64_t i = first; i < first + geometry.outer.count; ++i) {
        const double x = sink - plan.log_sums[i];
        const double p = std::exp(x);
        sum -= p > 0 ? p * plan.deltas[i] : 0;
        if (plan.with_entropy && p > 0) {
          const double h = plan.entropies[i];
          sum += plan.dentropies[i] *
                 (order == 1 ? -p * (x + h)
                             : order / (1 - order) * (std::exp(order * x + (order - 1) * h) - p));
        }
      }
    }
    float& out = dsinks.as<float>()[head * dsinks.stride(0)];
    out = static_cast<float>(sum + (plan.gradients->accumulate ? out : 0.0f));
  });
}

}  // namespace

int64_t attention_backward_cpu_bytes(const AttentionGradients& gradients,
                                     const AttentionInputs& inputs, const AttentionSaved& saved,
                                     const AttentionOptions& options) {
  return backward_plan(gradients, inputs, saved, options, HWY_DYNAMIC_DISPATCH(backward_target)(),
                       nullptr)
             .floats *
         4;
}

void attention_backward_cpu(const AttentionGradients& gradients, const AttentionInputs& inputs,
                            const AttentionSaved& saved, std::span<std::byte> workspace,
                            const AttentionOptions& options) {
  const BackwardPlan plan =
      backward_plan(gradients, inputs, saved, options, HWY_DYNAMIC_DISPATCH(backward_target)(),
                    reinterpret_cast<float*>(workspace.data()));
  const GeometrySource& source = plan.source;
  if (source.heads == 0) {
    return;
  }
  const int64_t row_tasks = tile_count(source.max_query, kRowsATask);
  const auto for_rows = [&](auto body) {
    parallel_for(row_tasks * source.sequences * source.heads, [&](int64_t task) {
      const int64_t first = task % row_tasks * kRowsATask;
      const int64_t rest = task / row_tasks;
      body(static_cast<int32_t>(rest / source.heads), static_cast<int32_t>(rest % source.heads),
           first, first + kRowsATask);
    });
  };
  for_rows([&](int32_t sequence, int32_t head, int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(backward_rows)(plan, sequence, head, first, last);
  });
  const auto run_chunk = [&](int64_t sequence_and_head, int64_t chunk, int worker) {
    HWY_DYNAMIC_DISPATCH(backward_chunk)
    (plan, static_cast<int32_t>(sequence_and_head / source.key_heads),
     static_cast<int32_t>(sequence_and_head % source.key_heads), chunk,
     plan.scratch + worker * plan.scratch_floats);
  };
  const int64_t heads = int64_t{source.sequences} * source.key_heads;
  if (gradients.dbias) {
    clear_unless(gradients.accumulate, gradients.dbias);
    // Sequences and heads may share a bias; chunks never share a key.
    for (int64_t n = 0; n < heads; ++n) {
      parallel_for_workers(plan.chunks,
                           [&](int64_t chunk, int worker) { run_chunk(n, chunk, worker); });
    }
  } else {
    parallel_for_workers(plan.chunks * heads, [&](int64_t task, int worker) {
      run_chunk(task / plan.chunks, task % plan.chunks, worker);
    });
  }
  if (gradients.dsinks) {
    backward_sinks(plan);
  }
  for_rows([&](int32_t sequence, int32_t head, int64_t first, int64_t last) {
    HWY_DYNAMIC_DISPATCH(reduce_queries)(plan, sequence, head, first, last);
  });
}

}  // namespace flashloom
#endif  // HWY_ONCE
