#pragma once

#include "flashloom/ops/attention/portable/reference_problem.cuh"

// The reference's forward pass: a block a row of queries, a warp a product, sums in a fixed order.
// attention_reference.cc is the definition; each kernel here is one of its loops.

namespace flashloom::portable {

struct ReferenceTask {
  int32_t sequence, head, index;
};

/// Blocks of a launch: `count` for each of `heads` heads of each sequence.
__device__ __forceinline__ ReferenceTask reference_task(int64_t block, int32_t heads,
                                                        int32_t count) {
  const auto of_head = static_cast<int32_t>(block / count);
  return {of_head / heads, of_head % heads, static_cast<int32_t>(block % count)};
}

/// Rows of out become 0, of lse -inf, of entropy 0, padding too.
template <class Real>
__global__ void __launch_bounds__(kReferenceThreads, kReferenceResident)
    attention_reference_clear_kernel(const __grid_constant__ ReferenceParams params) {
  const ReferenceTask task =
      reference_task(blockIdx.x, params.source.heads, params.source.max_query);
  const SequenceRows rows = resolve_rows(params.source, task.sequence);
  if (params.amax != nullptr && blockIdx.x == 0 && threadIdx.x == 0) {
    *params.amax = 0;
  }
  if (task.index >= rows.query_rows) {
    return;
  }
  const int64_t row = int64_t{rows.query_first} + task.index;
  for (auto e = static_cast<int32_t>(threadIdx.x); e < params.value_dim; e += kReferenceThreads) {
    store_real<Real>(params.out.data, params.out.dtype,
                     params.out.at(task.sequence, task.head, row) + e, 0);
  }
  if (threadIdx.x == 0 && params.lse.data != nullptr) {
    store_real(params.lse.data, params.lse.dtype, params.lse.at(task.sequence, task.head, row),
               no_score<Real>());
  }
  if (threadIdx.x == 0 && params.entropy.data != nullptr) {
    store_real<Real>(params.entropy.data, params.entropy.dtype,
                     params.entropy.at(task.sequence, task.head, row), 0);
  }
}

/// products[n] = sum of `a` (shared memory) times the row at row_at(n), for each of
/// kReferenceThreads rows whose thread says that the pair exists; false if none does. All threads
/// call it together; products are there when it returns.
template <class Real, class RowAt>
__device__ bool reference_products(bool exists, const Real* a, const ReferenceRows& rows,
                                   RowAt row_at, int32_t width, Real* products) {
  const auto own = static_cast<int32_t>(threadIdx.x);
  if (__syncthreads_or(exists) == 0) {  // and the products before these have been read
    return false;
  }
  uint32_t mine = __ballot_sync(0xffffffffu, exists);
  while (mine != 0) {
    const int32_t n = own / 32 * 32 + __ffs(static_cast<int>(mine)) - 1;
    mine &= mine - 1;
    const Real product = warp_dot(a, rows, row_at(n), width);
    if (own % 32 == 0) {
      products[n] = product;
    }
  }
  __syncthreads();
  return true;
}

/// exp(score - lse) summed for the entropy: order 1 -sum p log p, else sum p^order.
template <class Real>
__device__ Real entropy_term(Real score, Real lse, Real order) {
  return order == 1 ? exp(score - lse) * (lse - score) : exp(order * (score - lse));
}

template <class Real>
__global__ void __launch_bounds__(kReferenceThreads, kReferenceResident)
    attention_reference_forward_kernel(const __grid_constant__ ReferenceParams params) {
  extern __shared__ __align__(16) unsigned char memory[];
  __shared__ Real products[kReferenceThreads];
  __shared__ Real weights[kReferenceThreads];
  __shared__ Real parts[kReferenceThreads / 32];
  const ReferenceTask task =
      reference_task(blockIdx.x, params.source.heads, params.source.max_query);
  const ReferencePairs<Real> pairs(params, task.sequence, task.head);
  const int32_t i = task.index;
  if (i >= pairs.geometry.outer.count) {
    return;
  }
  const auto own = static_cast<int32_t>(threadIdx.x);
  Real* q = reinterpret_cast<Real*>(memory);
  Real* sums = q + params.head_dim;
  load_row(q, params.q, pairs.query_at(params.q, i), params.head_dim, pairs.q_scale);
  for (int32_t e = own; e < params.value_dim; e += kReferenceThreads) {
    sums[e] = 0;
  }
  __syncthreads();

  const auto visible = [&](int32_t first) {
    return first + own < pairs.geometry.inner.count && pairs.exists(i, first + own);
  };
  const auto key_row = [&](int32_t first) {
    return [&, first](int32_t n) { return pairs.key_at(params.k, first + n); };
  };

  // The largest score and the sum of exponentials, a thread's keys first.
  const Real sink = load_number<Real>(params.sinks, 0, task.head, no_score<Real>());
  Real top = no_score<Real>();
  Real total = 0;
  for (int32_t first = 0; first < pairs.geometry.inner.count; first += kReferenceThreads) {
    const bool exists = visible(first);
    if (!reference_products(exists, q, params.k, key_row(first), params.head_dim, products) ||
        !exists) {
      continue;
    }
    Real change;
    const Real score = pairs.score(pairs.k_scale * products[own], i, first + own, change);
    total = score > top ? total * exp(top - score) + 1 : total + exp(score - top);
    top = max(top, score);
  }
  const Real own_top = top;
  top = max(block_maximum(top, parts), sink);
  total = block_sum(own_top == no_score<Real>() ? Real{0} : total * exp(own_top - top), parts);
  total += sink == no_score<Real>() ? Real{0} : exp(sink - top);
  const bool empty = top == no_score<Real>();
  const Real lse = empty ? top : top + log(total);
  if (params.gate.dropped_mass.data != nullptr && own == 0) {
    const Real lost = params.gate.row_numbers[3 * pairs.list_at(i) + 2];
    const Real mass = empty ? Real{0} : exp(lse);
    store_real<Real>(params.gate.dropped_mass.data, params.gate.dropped_mass.dtype,
                     params.gate.dropped_mass.at(task.sequence, task.head, i),
                     lost > 0 ? lost / (lost + mass) : Real{0});
  }
  const int64_t row = pairs.output_row(i);
  if (row < 0 || empty) {
    return;
  }

  const auto order = static_cast<Real>(params.entropy_order);
  Real entropy = own == 0 && sink != no_score<Real>() ? entropy_term(sink, lse, order) : Real{0};
  for (int32_t first = 0; first < pairs.geometry.inner.count; first += kReferenceThreads) {
    const bool exists = visible(first);
    if (!reference_products(exists, q, params.k, key_row(first), params.head_dim, products)) {
      continue;
    }
    weights[own] = 0;
    if (exists) {
      Real change;
      const Real score = pairs.score(pairs.k_scale * products[own], i, first + own, change);
      entropy += entropy_term(score, lse, order);
      weights[own] = round_real(exp(score - top) * pairs.dropout(i, first + own), params.rounding);
    }
    __syncthreads();
    const int32_t count = min(kReferenceThreads, pairs.geometry.inner.count - first);
    for (int32_t e = own; e < params.value_dim; e += kReferenceThreads) {
      Real sum = sums[e];
      for (int32_t n = 0; n < count; ++n) {
        if (weights[n] != 0) {  // a row that is not seen may hold anything
          sum +=
              weights[n] * pairs.v_scale *
              load_real<Real>(params.v.data, params.v.dtype, pairs.key_at(params.v, first + n) + e);
        }
      }
      sums[e] = sum;
    }
  }
  const Real out_scale = load_number<Real>(params.out_scale, task.sequence, task.head, 1);
  Real largest = 0;
  for (int32_t e = own; e < params.value_dim; e += kReferenceThreads) {
    const Real value = sums[e] / total;
    largest = max(largest, value < 0 ? -value : value);
    store_real(params.out.data, params.out.dtype, pairs.query_at(params.out, row) + e,
               value / out_scale);
  }
  if (params.amax != nullptr) {
    // Floats that are not negative order as their bits do.
    atomicMax(reinterpret_cast<int*>(params.amax), __float_as_int(static_cast<float>(largest)));
  }
  if (own == 0 && params.lse.data != nullptr) {
    store_real(params.lse.data, params.lse.dtype, pairs.query_at(params.lse, row), lse);
  }
  if (params.entropy.data != nullptr) {
    entropy = block_sum(entropy, parts);
    if (own == 0) {
      store_real(params.entropy.data, params.entropy.dtype, pairs.query_at(params.entropy, row),
                 order == 1 ? entropy : log(entropy) / (1 - order));
    }
  }
}

/// Which tiles of keys the gate keeps, a block a scope of queries: the bitmap that the forward
/// kernel looks at, and what each row loses.
template <class Real>
__global__ void __launch_bounds__(kReferenceThreads, kReferenceResident)
    attention_reference_gate_kernel(const __grid_constant__ ReferenceParams params) {
  extern __shared__ __align__(16) unsigned char memory[];
  const ReferenceGate& gate = params.gate;
  const ReferenceTask task = reference_task(blockIdx.x, params.source.heads, gate.row_blocks);
  const ReferencePairs<Real> pairs(params, task.sequence, task.head);
  const auto lane = static_cast<int32_t>(threadIdx.x % 32);
  const auto warp = static_cast<int32_t>(threadIdx.x / 32);
  const int64_t first_row = task.index * gate.rows;
  const int64_t count = min(gate.rows, pairs.geometry.outer.count - first_row);
  const Real threshold =
      gate.threshold[task.head * gate.threshold_head +
                     min(int64_t{task.index}, gate.threshold_count - 1) * gate.threshold_block];
  uint32_t* words = pairs.bitmap(task.index);
  Real* q = reinterpret_cast<Real*>(memory) + warp * params.head_dim;
  const auto numbers = [&](int64_t i) {
    return gate.row_numbers + 3 * pairs.list_at(first_row + i);
  };
  for (int64_t i = threadIdx.x; i < count; i += kReferenceThreads) {
    numbers(i)[0] = no_score<double>();
    numbers(i)[2] = 0;
  }
  for (auto n = static_cast<int32_t>(threadIdx.x); n < gate.words; n += kReferenceThreads) {
    words[n] = 0;
  }
  const int64_t keys = count > 0 ? pairs.geometry.inner.count : 0;
  for (int64_t first = 0; first < keys; first += gate.keys) {
    const int64_t end = min(first + gate.keys, keys);
    bool skip = count == gate.rows && end - first == gate.keys;
    bool any = false;
    __syncthreads();
    for (int64_t i = warp; i < count; i += kReferenceThreads / 32) {
      const int64_t at = pairs.query_at(params.q, first_row + i);
      for (int32_t d = lane; d < params.head_dim; d += 32) {
        q[d] = pairs.q_scale * load_real<Real>(params.q.data, params.q.dtype, at + d);
      }
      __syncwarp();
      Real largest = no_score<Real>();
      for (int64_t j = first; j < end; ++j) {
        if (!pairs.visible(static_cast<int32_t>(first_row + i), static_cast<int32_t>(j))) {
          skip = false;
          continue;
        }
        any = true;
        const Real product =
            pairs.k_scale * warp_dot(q, params.k, pairs.key_at(params.k, j), params.head_dim);
        Real change;
        largest = max(largest, pairs.score(product, first_row + i, j, change));
      }
      skip = skip && (gate.kind == AttentionGate::Kind::absolute
                          ? largest < threshold
                          : static_cast<Real>(numbers(i)[0]) - largest > threshold);
      __syncwarp();
      if (lane == 0) {
        numbers(i)[1] = largest;
      }
    }
    skip = __syncthreads_and(skip) != 0;
    any = __syncthreads_or(any) != 0;
    for (int64_t i = threadIdx.x; i < count; i += kReferenceThreads) {
      double* row = numbers(i);
      if (skip) {
        row[2] += static_cast<double>(gate.keys) * exp(row[1]);
      } else {
        row[0] = max(row[0], row[1]);
      }
    }
    if (threadIdx.x == 0 && any && !skip) {
      words[first / gate.keys / 32] |= 1u << (first / gate.keys % 32);
    }
  }
  __syncthreads();
  if (gate.kept != nullptr) {
    uint32_t* to = gate.kept + task.sequence * gate.kept_sequence + task.head * gate.kept_head +
                   task.index * gate.kept_block;
    for (auto n = static_cast<int32_t>(threadIdx.x); n < gate.words; n += kReferenceThreads) {
      to[n * gate.kept_word] = words[n];
    }
  }
}

}  // namespace flashloom::portable
