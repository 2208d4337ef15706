#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include "flashloom/text/packed_batches.h"
#include "flashloom/train/evaluation.h"
#include "flashloom/train/state_tensor.h"

namespace flashloom {

/// Where a run stands, beside its tensors. Random numbers need no state: each is a function of the
/// seed and of where it is used.
struct TrainingState {
  int64_t step = 0;  // optimizer steps done
  DataPosition data;
  int64_t tokens = 0;  // that training has seen
  double seconds = 0;  // that it took
  std::optional<EvaluationResult> before, best;
  int64_t best_step = 0;
};

/// The folders `checkpoint-N` of a run. Each appears whole or not at all: files go to a neighbour
/// which is renamed once all are on the disk, `checkpoint.json` with the checksums of the others
/// last. The two newest are kept. Functions throw IoError for what the disk refuses.
class CheckpointFolders {
 public:
  /// Below `output`, which exists and is this process's alone. Removes what a killed run left
  /// unfinished.
  explicit CheckpointFolders(std::string output);

  /// Writes checkpoint-N, N = state.step: `tensors`, `state`, and what `write_model` puts into the
  /// folder that it is given. Returns the folder's path. Tensors that are parts are written whole,
  /// put together by `parts`.
  std::string write(const TrainingState& state, std::span<const StateTensor> tensors,
                    const std::function<void(const std::string& folder)>& write_model,
                    StateParts* parts = nullptr) const;

  /// Reads the newest checkpoint that is whole into `tensors`; none if there is none. Each newer
  /// one that is damaged is told to `damaged` (may be empty), with what is wrong. With `parts`,
  /// they hand out what is read, once it is known to be whole.
  std::optional<TrainingState> read_newest(
      std::span<const StateTensor> tensors,
      const std::function<void(const std::string& what)>& damaged,
      StateParts* parts = nullptr) const;

  /// Removes all.
  void clear() const;

 private:
  std::string output_;
};

}  // namespace flashloom
