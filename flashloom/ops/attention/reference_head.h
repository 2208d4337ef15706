#pragma once

#include <cstdint>
#include <vector>

#include "flashloom/ops/attention/attention.h"
#include "flashloom/ops/attention/patterns/sequence_geometry.h"

namespace flashloom {

/// Element `index` of any storage as a double, and back.
double load_element(const void* data, DType dtype, int64_t index);
void store_element(void* data, DType dtype, int64_t index, double value);

/// One (sequence, query head) of the reference: its rows in float64 and the score of a pair.
class ReferenceHead {
 public:
  ReferenceHead(const AttentionInputs& inputs, const AttentionOptions& options,
                const GeometrySource& source, int32_t sequence, int32_t head);

  int64_t queries() const { return geometry_.outer.count; }

  int64_t keys() const { return geometry_.inner.count; }

  const SequenceRows& rows() const { return rows_; }

  int64_t head_dim() const { return head_dim_; }

  const double* q(int64_t i) const { return &q_[static_cast<size_t>(i * head_dim_)]; }

  const double* k(int64_t j) const { return &k_[static_cast<size_t>(j * head_dim_)]; }

  const double* v(int64_t j) const { return &v_[static_cast<size_t>(j * value_dim_)]; }

  bool has_sink() const { return has_sink_; }

  double sink() const { return sink_; }

  double scale() const { return scale_; }

  /// Row of out, lse and entropy for query i; -1 for none.
  int64_t output_row(int64_t i) const { return output_index_ != nullptr ? output_index_[i] : i; }

  /// Final scores of row i; -inf where the pair is not visible.
  void scores(int64_t i, std::vector<double>& row) const;

  /// d(score) / d(scale q.k) at a final score of the pair (1 without softcap).
  double softcap_slope(int64_t i, int64_t j) const;

  /// 0 or 1 / (1 - probability).
  double dropout_factor(int64_t i, int64_t j) const;

 private:
  double raw_score(int64_t i, int64_t j) const;

  SequenceRows rows_;
  HeadGeometry geometry_;
  int32_t sequence_;
  int32_t head_;
  int64_t head_dim_;
  int64_t value_dim_;
  std::vector<double> q_;  // (queries, D)
  std::vector<double> k_;  // (keys, D)
  std::vector<double> v_;  // (keys, E)
  double scale_;
  double softcap_;
  double slope_ = 0;
  ConstTensorView bias_;  // (S_q or 1, S_k)
  bool has_sink_ = false;
  double sink_ = 0;
  double dropout_;
  uint64_t seed_ = 0;
  uint64_t offset_ = 0;
  const int32_t* output_index_;
};

/// Broadcasting select of the first two dimensions of a (B or 1, H or 1, ...) tensor.
template <class View>
View broadcast_head(const View& view, int64_t sequence, int64_t head) {
  return view.select(0, view.dim(0) == 1 ? 0 : sequence).select(0, view.dim(1) == 1 ? 0 : head);
}

}  // namespace flashloom
