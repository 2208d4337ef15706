#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "flashloom/core/labels.h"
#include "flashloom/text/packing.h"
#include "flashloom/text/token_documents.h"

namespace flashloom {

/// One bin as a model takes it: documents end to end, no padding. T is its number of tokens.
struct PackedBatch {
  std::vector<int32_t> tokens;     // (T)
  std::vector<int32_t> positions;  // (T), from 0 in each document
  std::vector<int32_t> labels;     // (T), the token that position t shall predict, or kIgnoredLabel
  std::vector<int32_t> cu_seqlens;  // (documents + 1), where each document begins
  int32_t max_length = 0;           // of a document
  int64_t loss_tokens = 0;          // labels that bear loss
};

/// Fills `out` from `documents[indices...]`. A label never crosses a border: the last position of a
/// document has none.
void fill_batch(PackedBatch& out, const TokenDocuments& documents,
                std::span<const int32_t> indices);

/// How many bins of what capacity make an optimizer step.
struct StepShape {
  int64_t bin_capacity = 0;
  int64_t bins_per_step = 0;
};

/// Cuts `batch_tokens` tokens a step into equal bins of at most `max_bin_tokens` (what the memory
/// plan allows a forward pass), never smaller than `sequence_length`, the longest document. One bin
/// of several sequences packs better than several bins of one, so bins are as large as they may be.
/// Throws InvalidArgument for arguments below 1 or max_bin_tokens < sequence_length.
StepShape plan_steps(int64_t batch_tokens, int64_t sequence_length, int64_t max_bin_tokens);

/// Where a run stands in its data: all the state there is beside options and seed.
struct DataPosition {
  int64_t epoch = 0;
  int64_t bin = 0;

  bool operator==(const DataPosition&) const = default;
};

/// The stream of optimizer steps: each epoch draws its documents by the weights of their groups,
/// anew packed and shuffled, `bins_per_step` bins a step; the last step of an epoch takes what is
/// left and never mixes two epochs.
class PackedStream {
 public:
  /// Borrows `documents`. `options.capacity` is shape.bin_capacity whatever it says.
  /// Throws InvalidArgument if there are no documents, or as pack_documents does.
  PackedStream(const TokenDocuments& documents, const StepShape& shape, PackingOptions options);

  /// The bins of the next step into `batches` (their memory is reused), and moves on.
  void next(std::vector<PackedBatch>& batches);

  const DataPosition& position() const { return position_; }

  /// Goes to a saved position. Throws InvalidArgument if there is no such bin.
  void seek(const DataPosition& position);

  /// Of the present epoch; epochs may differ by a few bins.
  int64_t bins() const { return plan_.bins(); }

  int64_t steps_per_epoch() const {
    return (plan_.bins() + shape_.bins_per_step - 1) / shape_.bins_per_step;
  }

 private:
  const TokenDocuments& documents_;
  StepShape shape_;
  PackingOptions options_;
  std::vector<int64_t> lengths_;
  PackingPlan plan_;
  DataPosition position_;
};

}  // namespace flashloom
