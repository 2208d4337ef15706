#pragma once

#include "flashloom/ops/attention/portable/backward_kernel.cuh"

// What stands beside the two big launches of the backward pass: numbers of query rows before them,
// gradients of sinks and of the bias behind them. All sums run in a fixed order.

namespace flashloom::portable {

inline constexpr int kRowWarps = 4;

/// One warp a query row.
__global__ void __launch_bounds__(32 * kRowWarps, 4)
    attention_query_numbers_kernel(const __grid_constant__ BackwardParams params) {
  const Problem& problem = params.problem;
  const GeometrySource& source = problem.source;
  const uint32_t blocks_of_head = (source.max_query + kRowWarps - 1) / kRowWarps;
  const auto of_head = static_cast<int32_t>(blockIdx.x / blocks_of_head);
  const int32_t head = of_head % source.heads;
  const int32_t sequence = of_head / source.heads;
  const auto i = static_cast<int32_t>(blockIdx.x % blocks_of_head * kRowWarps + threadIdx.x / 32);
  const uint32_t lane = threadIdx.x % 32;
  const SequenceRows lengths = resolve_rows(source, sequence);
  const HeadGeometry geometry = resolve_head(source, lengths, sequence, head);
  if (i >= geometry.outer.count) {
    return;
  }
  const QueryNumbers& numbers = params.numbers;
  const int64_t to = numbers.at(head, first_of_all(problem, lengths, sequence)) + i;
  const char* dout = output_rows(problem, params.dout, geometry, lengths, sequence, head).row(i);
  const char* out = output_rows(problem, params.out, geometry, lengths, sequence, head).row(i);
  const int32_t* index = source.output_index.at(sequence, head);
  const int64_t row = lengths.query_first + (index != nullptr ? index[lengths.query_first + i] : i);
  const float lse = dout != nullptr ? *scalar_at(params.lse, sequence, head, row) : -infinity();
  float delta = 0;
  if (lse != -infinity()) {
    for (auto e = static_cast<int32_t>(lane); e < problem.value_dim; e += 32) {
      delta += load_float(dout, params.dout.dtype, e) * load_float(out, params.out.dtype, e);
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      delta += __shfl_xor_sync(0xffffffffu, delta, step);
    }
    if (params.dlse.data != nullptr) {
      delta -= *scalar_at(params.dlse, sequence, head, row);
    }
  }
  if (lane == 0) {
    const bool seen = lse != -infinity();
    numbers.lse[to] = seen ? lse : infinity();
    numbers.delta[to] = delta;
    if (numbers.entropy != nullptr) {
      numbers.entropy[to] = seen ? *scalar_at(params.entropy, sequence, head, row) : 0;
      numbers.dentropy[to] = seen ? *scalar_at(params.dentropy, sequence, head, row) : 0;
    }
  }
}

inline constexpr int kSinkThreads = 256;

/// One block a head: the sink is a key whose value is 0.
__global__ void __launch_bounds__(kSinkThreads)
    attention_sink_gradient_kernel(const __grid_constant__ BackwardParams params, float* dsinks,
                                   int64_t stride) {
  const Problem& problem = params.problem;
  const GeometrySource& source = problem.source;
  const auto head = static_cast<int32_t>(blockIdx.x);
  const float sink = problem.score.sinks[head * problem.score.sink_stride];
  const QueryNumbers& numbers = params.numbers;
  float sum = 0;
  for (int32_t sequence = 0; sequence < source.sequences; ++sequence) {
    const SequenceRows lengths = resolve_rows(source, sequence);
    const HeadGeometry geometry = resolve_head(source, lengths, sequence, head);
    const int64_t first = numbers.at(head, first_of_all(problem, lengths, sequence));
    for (auto i = static_cast<int32_t>(threadIdx.x); i < geometry.outer.count; i += kSinkThreads) {
      const float distance = (sink - numbers.lse[first + i]) * kLog2E;
      if (!(distance > -infinity())) {
        continue;
      }
      const float p = exp2f(distance);
      sum -= p * numbers.delta[first + i];
      if (numbers.entropy != nullptr) {
        sum += entropy_gradient(p, distance, numbers.entropy[first + i],
                                numbers.dentropy[first + i], params.entropy_order);
      }
    }
  }
  __shared__ float sums[kSinkThreads];
  sums[threadIdx.x] = sum;
  for (int half = kSinkThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) {
      sums[threadIdx.x] += sums[threadIdx.x + half];
    }
  }
  if (threadIdx.x == 0) {
    float* to = dsinks + head * stride;
    *to = (params.accumulate ? *to : 0) + sums[0];
  }
}

struct BiasGradient {
  float* data = nullptr;
  int64_t batch = 0, head = 0, row = 0;        // strides
  int32_t sequences = 1, heads = 1, rows = 1;  // sizes; 1 is a sum
  int32_t columns = 0;
};

inline constexpr int kBiasTile = 16;

/// dS of one pair, from its rows in memory.
__device__ __forceinline__ float pair_gradient(const BackwardParams& params,
                                               const HeadGeometry& geometry,
                                               const SequenceRows& lengths, const HeadScore& rule,
                                               int32_t i, int32_t j) {
  const Problem& problem = params.problem;
  const auto sequence = static_cast<int32_t>(rule.sequence);
  const auto head = static_cast<int32_t>(rule.head);
  const int32_t key_head = head / (problem.source.heads / problem.source.key_heads);
  if (!pair_exists(geometry, problem.partial_count, i, j)) {
    return 0;
  }
  const QueryNumbers& numbers = params.numbers;
  const int64_t at = numbers.at(head, first_of_all(problem, lengths, sequence)) + i;
  const float lse = numbers.lse[at];
  const char* dout = output_rows(problem, params.dout, geometry, lengths, sequence, head).row(i);
  if (lse == infinity() || dout == nullptr) {
    return 0;
  }
  const char* q = query_rows(problem.q, geometry, lengths, sequence, head).row(i);
  const char* k = key_rows(problem, problem.k, geometry, lengths, sequence, key_head).row(j);
  const char* v = key_rows(problem, problem.v, geometry, lengths, sequence, key_head).row(j);
  float product = 0;
  for (int32_t d = 0; d < problem.head_dim; ++d) {
    product += load_float(q, problem.q.dtype, d) * load_float(k, problem.k.dtype, d);
  }
  float dp = 0;
  for (int32_t e = 0; e < problem.value_dim; ++e) {
    dp += load_float(dout, params.dout.dtype, e) * load_float(v, problem.v.dtype, e);
  }
  const int64_t query_position = geometry.outer.position(i);
  const int64_t key_position = geometry.inner.position(j);
  float slope;
  const float score = final_score(rule, product, i, j, key_position - query_position, slope);
  const float distance = (score - lse) * kLog2E;
  const float p = exp2f(distance);
  const float factor = rule.dropout ? dropout_factor(rule, query_position, key_position) : 1;
  float gradient = p * (factor * dp - numbers.delta[at]);
  if (numbers.entropy != nullptr) {
    gradient += entropy_gradient(p, distance, numbers.entropy[at], numbers.dentropy[at],
                                 params.entropy_order);
  }
  return gradient;
}

/// A thread a pair: the block's 16 keys and 16 queries (all queries in turn where the bias has one
/// row), summed over the sequences and heads that share the bias. Rare, so plain loops.
__global__ void __launch_bounds__(kBiasTile* kBiasTile, 1)
    attention_bias_gradient_kernel(const __grid_constant__ BackwardParams params,
                                   const BiasGradient bias) {
  const Problem& problem = params.problem;
  const GeometrySource& source = problem.source;
  __shared__ unsigned char geometry_bytes[sizeof(HeadGeometry)] __attribute__((aligned(16)));
  __shared__ float sums[kBiasTile][kBiasTile + 1];
  HeadGeometry& geometry = *reinterpret_cast<HeadGeometry*>(geometry_bytes);
  const auto column = static_cast<int32_t>(threadIdx.x % kBiasTile);
  const auto row = static_cast<int32_t>(threadIdx.x / kBiasTile);
  const auto j = static_cast<int32_t>(blockIdx.x) * kBiasTile + column;
  const auto of_sequence = static_cast<int32_t>(blockIdx.z) / bias.heads;
  const auto of_head = static_cast<int32_t>(blockIdx.z) % bias.heads;
  const int32_t sequences = bias.sequences == 1 ? source.sequences : 1;
  const int32_t heads = bias.heads == 1 ? source.heads : 1;
  float sum = 0;
  for (int32_t member = 0; member < sequences * heads; ++member) {
    const int32_t sequence = bias.sequences == 1 ? member / heads : of_sequence;
    const int32_t head = bias.heads == 1 ? member % heads : of_head;
    const SequenceRows lengths = resolve_rows(source, sequence);
    __syncthreads();
    if (threadIdx.x == 0) {
      new (geometry_bytes) HeadGeometry(resolve_head(source, lengths, sequence, head));
    }
    __syncthreads();
    if (j >= geometry.inner.count) {
      continue;
    }
    const HeadScore rule = head_score(problem.score, sequence, head);
    const int32_t first = bias.rows == 1 ? row : static_cast<int32_t>(blockIdx.y) * kBiasTile + row;
    const int32_t end =
        bias.rows == 1 ? geometry.outer.count : min(first + 1, geometry.outer.count);
    for (int32_t i = first; i < end; i += kBiasTile) {
      sum += pair_gradient(params, geometry, lengths, rule, i, j);
    }
  }
  if (bias.rows == 1) {
    sums[row][column] = sum;
    __syncthreads();
    for (int n = 1; row == 0 && n < kBiasTile; ++n) {
      sum += sums[n][column];
    }
  }
  const int32_t i = bias.rows == 1 ? row : static_cast<int32_t>(blockIdx.y) * kBiasTile + row;
  if (i < bias.rows && j < bias.columns) {
    float* to = bias.data + of_sequence * bias.batch + of_head * bias.head + i * bias.row + j;
    *to = (params.accumulate ? *to : 0) + sum;
  }
}

}  // namespace flashloom::portable
