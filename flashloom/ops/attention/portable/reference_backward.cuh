#pragma once

#include "flashloom/ops/attention/portable/reference_forward.cuh"

// The reference's backward pass: dQ by a block a query, dK and dV by a block a key of a key-value
// head, scores computed again in each. attention_reference_backward.cc is the definition.

namespace flashloom::portable {

/// What a query's row of scalars contributes to every pair.
template <class Real>
struct ReferenceRowNumbers {
  Real lse;    // -inf: the row sees nothing or goes nowhere
  Real delta;  // sum of dout * out, less dlse
  Real entropy, dentropy;

  /// d(loss) / d(score) of a pair whose probability receives dp.
  __device__ Real gradient(Real score, Real dp, Real order) const {
    const Real p = exp(score - lse);
    Real ds = p * (dp - delta);
    if (dentropy != 0) {
      if (order == 1) {
        ds -= p * dentropy * (score - lse + entropy);
      } else {
        // d/ds of log(sum p^a) / (1 - a); the sum is exp((1 - a) entropy).
        const Real share = exp(order * (score - lse) - (1 - order) * entropy);
        ds += dentropy * order / (1 - order) * (share - p);
      }
    }
    return ds;
  }
};

template <class Real>
__device__ __forceinline__ ReferenceRowNumbers<Real>& row_numbers(const ReferencePairs<Real>& pairs,
                                                                  int64_t i) {
  return static_cast<ReferenceRowNumbers<Real>*>(pairs.params.row_numbers)[pairs.list_at(i)];
}

template <class Real>
__device__ Real row_scalar(const ReferencePairs<Real>& pairs, const ReferenceRows& rows,
                           int64_t row) {
  return rows.data == nullptr ? Real{0}
                              : load_real<Real>(rows.data, rows.dtype, pairs.query_at(rows, row));
}

/// A block a query.
template <class Real>
__global__ void __launch_bounds__(kReferenceThreads, kReferenceResident)
    attention_reference_numbers_kernel(const __grid_constant__ ReferenceParams params) {
  __shared__ Real parts[kReferenceThreads / 32];
  const ReferenceTask task =
      reference_task(blockIdx.x, params.source.heads, params.source.max_query);
  const ReferencePairs<Real> pairs(params, task.sequence, task.head);
  if (task.index >= pairs.geometry.outer.count) {
    return;
  }
  const int64_t row = pairs.output_row(task.index);
  ReferenceRowNumbers<Real> numbers = {no_score<Real>(), 0, 0, 0};
  if (row >= 0) {
    Real sum = 0;
    const int64_t out = pairs.query_at(params.out, row);
    const int64_t dout = pairs.query_at(params.dout, row);
    for (auto e = static_cast<int32_t>(threadIdx.x); e < params.value_dim; e += kReferenceThreads) {
      sum += load_real<Real>(params.out.data, params.out.dtype, out + e) *
             load_real<Real>(params.dout.data, params.dout.dtype, dout + e);
    }
    numbers = {row_scalar(pairs, params.lse, row),
               block_sum(sum, parts) - row_scalar(pairs, params.dlse, row),
               row_scalar(pairs, params.entropy, row), row_scalar(pairs, params.dentropy, row)};
  }
  if (threadIdx.x == 0) {
    row_numbers(pairs, task.index) = numbers;
  }
}

template <class Real>
__device__ __forceinline__ void store_sums(const ReferenceRows& rows, int64_t at, const Real* sums,
                                           int32_t width, bool accumulate) {
  for (auto d = static_cast<int32_t>(threadIdx.x); d < width; d += kReferenceThreads) {
    const Real before = accumulate ? load_real<Real>(rows.data, rows.dtype, at + d) : Real{0};
    store_real(rows.data, rows.dtype, at + d, before + sums[d]);
  }
}

/// sums += factors[n] * row n, rows with a factor of 0 unread.
template <class Real, class RowAt>
__device__ __forceinline__ void add_rows(Real* sums, const Real* factors, const ReferenceRows& rows,
                                         RowAt row_at, int32_t width) {
  for (auto d = static_cast<int32_t>(threadIdx.x); d < width; d += kReferenceThreads) {
    Real sum = sums[d];
    for (int32_t n = 0; n < kReferenceThreads; ++n) {
      if (factors[n] != 0) {
        sum += factors[n] * load_real<Real>(rows.data, rows.dtype, row_at(n) + d);
      }
    }
    sums[d] = sum;
  }
}

/// dP and dS of one pair from its two products: the factor of dout in dV, and that of k in dQ and
/// of q in dK.
template <class Real>
struct ReferencePairGradient {
  Real weight, dz;

  __device__ ReferencePairGradient(const ReferencePairs<Real>& pairs,
                                   const ReferenceRowNumbers<Real>& numbers, Real product, Real dp,
                                   int32_t i, int32_t j) {
    Real change;
    const Real score = pairs.score(product, i, j, change);
    const Real factor = pairs.dropout(i, j);
    weight = round_real(exp(score - numbers.lse) * factor, pairs.params.rounding);
    const Real ds =
        numbers.gradient(score, dp * factor, static_cast<Real>(pairs.params.entropy_order));
    dz = round_real(ds * change, pairs.params.rounding) * static_cast<Real>(pairs.params.scale);
  }
};

template <class Real>
__global__ void __launch_bounds__(kReferenceThreads, kReferenceResident)
    attention_reference_query_gradient_kernel(const __grid_constant__ ReferenceParams params) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ Real products[kReferenceThreads];
  __shared__ Real dps[kReferenceThreads];
  __shared__ Real factors[kReferenceThreads];
  const ReferenceTask task =
      reference_task(blockIdx.x, params.source.heads, params.source.max_query);
  const ReferencePairs<Real> pairs(params, task.sequence, task.head);
  const int32_t i = task.index;
  if (i >= pairs.rows.query_rows) {
    return;
  }
  const auto own = static_cast<int32_t>(threadIdx.x);
  Real* q = reinterpret_cast<Real*>(memory);
  Real* dout = q + params.head_dim;
  Real* sums = dout + params.value_dim;
  for (int32_t d = own; d < params.head_dim; d += kReferenceThreads) {
    sums[d] = 0;
  }
  ReferenceRowNumbers<Real> numbers = {no_score<Real>(), 0, 0, 0};
  if (i < pairs.geometry.outer.count) {
    numbers = row_numbers(pairs, i);
  }
  if (numbers.lse != no_score<Real>()) {
    load_row(q, params.q, pairs.query_at(params.q, i), params.head_dim, pairs.q_scale);
    load_row(dout, params.dout, pairs.query_at(params.dout, pairs.output_row(i)), params.value_dim,
             Real{1});
    const int32_t keys = pairs.geometry.inner.count;
    for (int32_t first = 0; first < keys; first += kReferenceThreads) {
      const auto key_row = [&](const ReferenceRows& rows) {
        return [&](int32_t n) { return pairs.key_at(rows, first + n); };
      };
      const bool exists = first + own < keys && pairs.visible(i, first + own);
      if (!reference_products(exists, q, params.k, key_row(params.k), params.head_dim, products)) {
        continue;
      }
      reference_products(exists, dout, params.v, key_row(params.v), params.value_dim, dps);
      factors[own] = 0;
      if (exists) {
        factors[own] = pairs.k_scale *
                       ReferencePairGradient<Real>(pairs, numbers, pairs.k_scale * products[own],
                                                   pairs.v_scale * dps[own], i, first + own)
                           .dz;
      }
      __syncthreads();
      add_rows(sums, factors, params.k, key_row(params.k), params.head_dim);
    }
  }
  __syncthreads();
  store_sums(params.dq, pairs.query_at(params.dq, i), sums, params.head_dim, params.accumulate);
}

template <class Real>
__global__ void __launch_bounds__(kReferenceThreads, kReferenceResident)
    attention_reference_key_gradient_kernel(const __grid_constant__ ReferenceParams params) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ Real products[kReferenceThreads];
  __shared__ Real dps[kReferenceThreads];
  __shared__ Real factors[kReferenceThreads];
  __shared__ Real weights[kReferenceThreads];
  const int32_t group = params.source.heads / params.source.key_heads;
  const ReferenceTask task =
      reference_task(blockIdx.x, params.source.key_heads, params.source.max_key);
  const int32_t j = task.index;
  const SequenceRows rows = resolve_rows(params.source, task.sequence);
  if (j >= rows.key_rows) {
    return;
  }
  const auto own = static_cast<int32_t>(threadIdx.x);
  Real* k = reinterpret_cast<Real*>(memory);
  Real* v = k + params.head_dim;
  Real* dk = v + params.value_dim;
  Real* dv = dk + params.head_dim;
  for (int32_t d = own; d < params.head_dim + params.value_dim; d += kReferenceThreads) {
    dk[d] = 0;  // and dv behind it
  }
  for (int32_t head = task.head * group; head < (task.head + 1) * group; ++head) {
    const ReferencePairs<Real> pairs(params, task.sequence, head);
    if (j >= pairs.geometry.inner.count) {
      break;
    }
    if (head == task.head * group) {
      load_row(k, params.k, pairs.key_at(params.k, j), params.head_dim, pairs.k_scale);
      load_row(v, params.v, pairs.key_at(params.v, j), params.value_dim, pairs.v_scale);
    }
    const int32_t queries = pairs.geometry.outer.count;
    for (int32_t first = 0; first < queries; first += kReferenceThreads) {
      const auto query_row = [&](int32_t n) { return pairs.query_at(params.q, first + n); };
      const auto dout_row = [&](int32_t n) {
        return pairs.query_at(params.dout, pairs.output_row(first + n));
      };
      const int32_t i = first + own;
      const bool exists =
          i < queries && row_numbers(pairs, i).lse != no_score<Real>() && pairs.visible(i, j);
      if (!reference_products(exists, k, params.q, query_row, params.head_dim, products)) {
        continue;
      }
      reference_products(exists, v, params.dout, dout_row, params.value_dim, dps);
      factors[own] = weights[own] = 0;
      if (exists) {
        const ReferencePairGradient<Real> gradient(pairs, row_numbers(pairs, i),
                                                   pairs.q_scale * products[own], dps[own], i, j);
        factors[own] = gradient.dz * pairs.q_scale;
        weights[own] = gradient.weight;
      }
      __syncthreads();
      add_rows(dk, factors, params.q, query_row, params.head_dim);
      add_rows(dv, weights, params.dout, dout_row, params.value_dim);
    }
  }
  __syncthreads();
  const int64_t row = int64_t{rows.key_first} + j;
  store_sums(params.dk, params.dk.at(task.sequence, task.head, row), dk, params.head_dim,
             params.accumulate);
  store_sums(params.dv, params.dv.at(task.sequence, task.head, row), dv, params.value_dim,
             params.accumulate);
}

/// A block a head.
template <class Real>
__global__ void __launch_bounds__(kReferenceThreads, kReferenceResident)
    attention_reference_sink_gradient_kernel(const __grid_constant__ ReferenceParams params) {
  __shared__ Real parts[kReferenceThreads / 32];
  const auto head = static_cast<int32_t>(blockIdx.x);
  const Real sink = load_number<Real>(params.sinks, 0, head, no_score<Real>());
  Real sum = 0;
  for (int32_t sequence = 0; sequence < params.source.sequences; ++sequence) {
    const ReferencePairs<Real> pairs(params, sequence, head);
    for (auto i = static_cast<int32_t>(threadIdx.x); i < pairs.geometry.outer.count;
         i += kReferenceThreads) {
      const ReferenceRowNumbers<Real>& numbers = row_numbers(pairs, i);
      if (numbers.lse != no_score<Real>()) {
        sum += numbers.gradient(sink, 0, static_cast<Real>(params.entropy_order));
      }
    }
  }
  sum = block_sum(sum, parts);
  if (threadIdx.x == 0) {
    const ReferenceRows& to = params.dsinks;
    const Real before =
        params.accumulate ? load_real<Real>(to.data, to.dtype, head * to.row) : Real{0};
    store_real(to.data, to.dtype, head * to.row, before + sum);
  }
}

/// A warp an element of the bias: the pairs that it was added to, one after the other.
template <class Real>
__global__ void __launch_bounds__(kReferenceThreads, kReferenceResident)
    attention_reference_bias_gradient_kernel(const __grid_constant__ ReferenceParams params) {
  int64_t element = int64_t{blockIdx.x} * (kReferenceThreads / 32) + threadIdx.x / 32;
  const auto j = static_cast<int32_t>(element % params.dbias_columns);
  element /= params.dbias_columns;
  const auto row = static_cast<int32_t>(element % params.dbias_rows);
  element /= params.dbias_rows;
  const auto own_head = static_cast<int32_t>(element % params.dbias_heads);
  const auto own_sequence = static_cast<int32_t>(element / params.dbias_heads);
  if (own_sequence >= params.dbias_sequences) {
    return;
  }
  const auto dot = [](const ReferenceRows& a, int64_t a_at, const ReferenceRows& b, int64_t b_at,
                      int32_t width) {
    Real sum = 0;
    for (auto d = static_cast<int32_t>(threadIdx.x % 32); d < width; d += 32) {
      sum +=
          load_real<Real>(a.data, a.dtype, a_at + d) * load_real<Real>(b.data, b.dtype, b_at + d);
    }
    return warp_sum(sum);
  };
  // A dimension of size 1 stands for all sequences, heads or queries.
  const auto range_end = [](int32_t size, int32_t own, int32_t all) {
    return size == 1 ? all : own + 1;
  };
  Real sum = 0;
  for (int32_t sequence = own_sequence;
       sequence < range_end(params.dbias_sequences, own_sequence, params.source.sequences);
       ++sequence) {
    for (int32_t head = own_head;
         head < range_end(params.dbias_heads, own_head, params.source.heads); ++head) {
      const ReferencePairs<Real> pairs(params, sequence, head);
      if (j >= pairs.geometry.inner.count) {
        continue;
      }
      const int32_t end = min(pairs.geometry.outer.count,
                              range_end(params.dbias_rows, row, pairs.geometry.outer.count));
      for (int32_t i = row; i < end; ++i) {
        const ReferenceRowNumbers<Real>& numbers = row_numbers(pairs, i);
        if (numbers.lse == no_score<Real>() || !pairs.visible(i, j)) {
          continue;
        }
        const Real product = pairs.q_scale * pairs.k_scale *
                             dot(params.q, pairs.query_at(params.q, i), params.k,
                                 pairs.key_at(params.k, j), params.head_dim);
        const Real dp =
            pairs.v_scale * dot(params.dout, pairs.query_at(params.dout, pairs.output_row(i)),
                                params.v, pairs.key_at(params.v, j), params.value_dim);
        Real change;
        const Real score = pairs.score(product, i, j, change);
        sum += numbers.gradient(score, dp * pairs.dropout(i, j),
                                static_cast<Real>(params.entropy_order));
      }
    }
  }
  if (threadIdx.x % 32 == 0) {
    const ReferenceRows& to = params.dbias;
    const int64_t at = to.at(own_sequence, own_head, row) + j;
    const Real before = params.accumulate ? load_real<Real>(to.data, to.dtype, at) : Real{0};
    store_real(to.data, to.dtype, at, before + sum);
  }
}

}  // namespace flashloom::portable
