#pragma once

#include <cstdint>

namespace flashloom::sm90 {

/// What both directions know about the problem. Rows and keys of sequence b start at
/// cu_query[b] and cu_key[b] of a packed tensor, else at 0 of batch entry b.
struct Problem {
  int32_t batch;
  int32_t heads;          // query heads
  int32_t heads_per_key;  // query heads a key-value head
  int32_t query_length;   // of every sequence, or the longest of a packed batch
  int32_t key_length;
  int32_t left, right;  // visible keys around a query's position; kUnbounded
  int32_t query_start;  // position of query 0; with default_offset key length - query length
  int32_t key_start;    // position of key 0
  int32_t default_offset;
  int32_t total_query;  // rows of packed tensors
  int32_t total_key;
  const int32_t* cu_query;  // (batch + 1) or null
  const int32_t* cu_key;
  const int32_t* used_query;  // (batch) or null
  const int32_t* used_key;
  int32_t* status;  // or null: takes 1 if a length is out of range
};

/// Further than any sequence is long, and small enough to be added to a position.
inline constexpr int32_t kUnbounded = 1 << 29;

/// One sequence: where its rows lie and what they see.
struct Sequence {
  int32_t query_first, key_first;    // row of the tensor
  int32_t query_length, key_length;  // that exist
  int32_t query_rows, key_rows;      // that are stored, padding included
  int32_t offset;                    // position of query 0 less that of key 0
  int32_t query_start;               // position of query 0
  int32_t left, right;

  /// Keys [key_begin(i), key_end(i)) are visible to query i.
  __device__ __forceinline__ int32_t key_end(int32_t query) const {
    return min(key_length, max(0, query + offset + right + 1));
  }

  __device__ __forceinline__ int32_t key_begin(int32_t query) const {
    return max(0, query + offset - left);
  }

  /// Queries [query_begin(j), query_end(j)) see key j.
  __device__ __forceinline__ int32_t query_begin(int32_t key) const {
    return max(0, key - offset - right);
  }

  __device__ __forceinline__ int32_t query_end(int32_t key) const {
    return min(query_length, max(0, key - offset + left + 1));
  }
};

/// `value` within [0, limit]; notes in `faulty` if it was not.
__device__ __forceinline__ int32_t clamp_length(int32_t value, int32_t limit, bool& faulty) {
  faulty |= value < 0 || value > limit;
  return min(max(value, 0), limit);
}

/// Lengths out of range are clamped, so that memory stays safe, and reported in `status`.
__device__ __forceinline__ Sequence sequence_of(const Problem& problem, int32_t batch) {
  Sequence sequence;
  bool faulty = false;
  sequence.query_first = 0;
  sequence.key_first = 0;
  sequence.query_rows = problem.query_length;
  sequence.key_rows = problem.key_length;
  if (problem.cu_query != nullptr) {
    sequence.query_first = clamp_length(problem.cu_query[batch], problem.total_query, faulty);
    const int32_t end = clamp_length(problem.cu_query[batch + 1], problem.total_query, faulty);
    sequence.query_rows = clamp_length(end - sequence.query_first, problem.query_length, faulty);
  }
  if (problem.cu_key != nullptr) {
    sequence.key_first = clamp_length(problem.cu_key[batch], problem.total_key, faulty);
    const int32_t end = clamp_length(problem.cu_key[batch + 1], problem.total_key, faulty);
    sequence.key_rows = clamp_length(end - sequence.key_first, problem.key_length, faulty);
  }
  sequence.query_length = sequence.query_rows;
  sequence.key_length = sequence.key_rows;
  if (problem.used_query != nullptr) {
    sequence.query_length = clamp_length(problem.used_query[batch], sequence.query_rows, faulty);
  }
  if (problem.used_key != nullptr) {
    sequence.key_length = clamp_length(problem.used_key[batch], sequence.key_rows, faulty);
  }
  sequence.left = problem.left;
  sequence.right = problem.right;
  sequence.query_start = problem.default_offset != 0 ? sequence.key_length - sequence.query_length
                                                     : problem.query_start;
  sequence.offset = sequence.query_start - problem.key_start;
  if (faulty && problem.status != nullptr) {
    *problem.status = 1;
  }
  return sequence;
}

}  // namespace flashloom::sm90
