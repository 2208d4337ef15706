#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cli/attend_flags.h"
#include "cli/attend_tensor.h"
#include "flashloom/ops/attention/attention.h"

namespace flashloom::cli {

/// What a call writes.
struct AttendResults {
  AttendTensor out, lse, entropy, dq, dk, dv, dsinks, dbias;
};

/// A call of the contract with tensors of random numbers, as the flags describe it.
class AttendCase {
 public:
  /// Throws UsageError if flags contradict each other.
  explicit AttendCase(const AttendFlags& flags);

  AttendCase(AttendCase&&) = delete;  // options point into the tensors

  const AttendFlags& flags() const { return flags_; }

  const AttentionInputs& inputs() const { return inputs_; }

  const AttentionOptions& options() const { return options_; }

  int64_t sequences() const { return sequences_; }

  /// Memory for results in a storage type; scalars of rows in f32, or in f64 with f64.
  AttendResults results(DType dtype) const;

  AttentionOutputs outputs(const AttendResults& results) const;
  AttentionSaved saved(const AttendResults& results) const;
  AttentionGradients gradients(const AttendResults& results) const;

  /// "f32, 1 sequence, 8 heads, 1024 queries, 1024 keys, D 64".
  std::string shape() const;

  /// "window 127 left, 0 right, sinks"; "every pair" if nothing is hidden or changed.
  std::string pattern() const;

 private:
  void make_tensors();
  void make_sequences();
  void make_visibility();
  void make_blocks();
  void make_positions();
  void make_score();
  std::vector<int64_t> rows(int64_t heads, int64_t count, int64_t width) const;
  const AttendTensor& keep(AttendTensor tensor);

  AttendFlags flags_;
  bool packed_;
  int64_t sequences_;
  int64_t key_heads_;
  int64_t query_rows_;  // of the tensors: S or T
  int64_t key_rows_;
  int64_t value_dim_;
  DType dtype_;
  AttentionInputs inputs_;
  AttentionOptions options_;
  AttendTensor dout_, dlse_, dentropy_;
  std::vector<std::unique_ptr<AttendTensor>> tensors_;  // all others
  uint64_t seed_;
};

}  // namespace flashloom::cli
