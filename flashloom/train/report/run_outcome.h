#pragma once

#include <cstdint>
#include <optional>

#include "flashloom/train/report/run_folder.h"

namespace flashloom {

/// What came of a run, from its log; absent where the log does not say.
struct RunOutcome {
  int64_t steps = 0;  // the last one that is logged
  /// The first step's, and the mean of the last tenth of the steps, since single steps are noisy.
  std::optional<double> first_loss, loss;
  std::optional<double> eval_loss_before, eval_loss_after, eval_loss_best;
  int64_t best_step = 0;
  /// Of all steps together, evaluation and checkpoints not counted.
  std::optional<double> seconds, tokens, tokens_per_second, loss_tokens_per_second, mfu;
  std::optional<double> packing;  // share of the bins' room that was filled
  std::optional<int64_t> planned_bytes, peak_bytes;
  int64_t findings = 0;  // of guards
};

RunOutcome outcome_of(const RunFolder& run);

/// As the page takes it, without what is absent.
Json to_json(const RunOutcome& outcome);

}  // namespace flashloom
