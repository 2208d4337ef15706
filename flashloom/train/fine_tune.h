#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "flashloom/comm/communicator.h"
#include "flashloom/core/memory_plan.h"
#include "flashloom/io/directory_lock.h"
#include "flashloom/io/metric_log.h"
#include "flashloom/models/llama/llama.h"
#include "flashloom/text/packed_batches.h"
#include "flashloom/text/token_documents.h"
#include "flashloom/train/checkpoint.h"
#include "flashloom/train/evaluation.h"
#include "flashloom/train/guards.h"
#include "flashloom/train/model_bundle.h"
#include "flashloom/train/optimizer.h"
#include "flashloom/train/parallel/data_parallel.h"
#include "flashloom/train/report/run_journal.h"
#include "flashloom/train/schedule.h"

namespace flashloom {

struct FineTuneOptions {
  std::string output;  // directory of the run, made if missing
  bool resume = true;  // go on with the run that is there; else replace it
  std::optional<LoraOptions> lora = LoraOptions();  // absent: all weights are trained
  /// What is computed again to save memory. The weights do not depend on it, so a run may go on
  /// with another level.
  LlamaRecompute recompute = LlamaRecompute::norms;
  OptimizerOptions optimizer;
  ScheduleOptions schedule;
  double neftune_alpha = 0;        // noise on the embeddings; 0: none
  LlamaFrozen frozen;              // for LoRA only layers: those get no adapter
  int64_t steps = 0;               // optimizer steps; 0: as many as `epochs` take
  int64_t epochs = 1;              // passes over the data, if steps is 0
  int64_t batch_tokens = 1024;     // of an optimizer step
  int64_t micro_batch_tokens = 0;  // of them at once, at most; 0: as many as memory allows
  int64_t eval_steps = 0;  // evaluate every so many steps, and at the end; 0: only at the end
  int64_t save_steps = 0;  // checkpoint every so many steps, and at the end
  DType weight_dtype = DType::f32;  // of matrices in memory, trained or frozen: f32 or bf16
  bool quantized_base = false;      // QLoRA: linears that the file stores in blocks stay so
  DType save_dtype = DType::f32;    // of full weights in files
  uint64_t seed = 0;
  int64_t process_bytes = 0;  // what the program holds beside the plan: counted against the budget
  bool guards = true;         // watch for signs that the run does not train; under 1 % of the time
  /// The ranks that train together, each in a FineTune of its own with the same options; absent:
  /// this one alone. They take a step's micro-batches in turn and each holds a share of the
  /// optimizer's state (ZeRO-1). Rank 0 alone reads and writes `output` and calls the observer.
  Communicator* ranks = nullptr;
  /// What decided the data beside the rows themselves, by name: a run that goes on must have the
  /// same.
  std::vector<std::pair<std::string, std::string>> data_settings = {};
  ReportOptions report = {};
};

/// One optimizer step, as the metrics record it. Rates are over the step's own time.
struct StepReport {
  int64_t step = 0;  // from 1
  int64_t steps = 0;
  double epoch = 0;
  double loss = 0;  // mean over loss-bearing tokens, nats
  double learning_rate = 0;
  double gradient_norm = 0;
  double seconds = 0;
  double guard_seconds = 0;  // of these, what the guards took
  int64_t tokens = 0;        // that went through the model: packed bins hold no padding
  int64_t loss_tokens = 0;   // that bear loss
  int64_t capacity = 0;      // what the step's bins could have held ("all", with their empty room)
  double utilisation = 0;    // MFU: FLOPs of the step / seconds / measure_peak_flops()
  std::string largest_gradient, smallest_gradient;  // of all tensors, by norm
  double largest_gradient_norm = 0, smallest_gradient_norm = 0;
  double update_ratio = 0;   // |dw| / |w|, sampled by the guards
  double lost_updates = 0;   // share of updates that rounding swallowed, sampled by the guards
  int64_t memory_bytes = 0;  // anonymous_memory_bytes() after the step
  int64_t bytes_sent = 0;    // by this rank to others
};

/// What a run tells its caller; every function may be empty.
struct FineTuneObserver {
  std::function<void(const StepReport&)> stepped;
  std::function<void(int64_t step, const EvaluationResult&)> evaluated;
  std::function<void(const std::string& directory)> saved;
  /// A guard found a sign that the run does not train as it should.
  std::function<void(const GuardFinding&)> guarded;
  /// The run goes on from `step`, or was finished already (step == steps).
  std::function<void(int64_t step)> resumed;
  /// A checkpoint is damaged, and the one before it is tried.
  std::function<void(const std::string& what)> damaged;
  /// Asked after each step, on every rank: true on any of them ends the run in good order.
  std::function<bool()> stop;
};

struct FineTuneResult {
  TrainingState state;  // at the end, with what a resumed run did before
  bool stopped = false;
  int64_t checkpoints = 0;  // written
  double checkpoint_seconds = 0;
  std::optional<EvaluationResult> after;  // of the last step, unless stopped
};

/// A fine-tuning run: everything is planned in the constructor, nothing allocated in a step. The
/// weights at its end are bit for bit the same for any number of threads and however often the
/// process was ended and started again (on one kind of processor). Another number of ranks, at the
/// start or when a run goes on, changes the order in which gradients are added, and so the last
/// bits.
class FineTune {
 public:
  /// Borrows the model bundle and the documents. Throws OutOfMemory with the table, and the flags
  /// that would fit, if the plan does not fit `memory_budget`; micro-batches are made as small as a
  /// document before that, unless the output directory holds a run, whose micro-batches stay.
  /// Throws Error if that run has other settings or data, IoError if another process is writing
  /// there. Of several ranks the least budget counts, and a step has a micro-batch for each if the
  /// longest document allows.
  FineTune(const ModelBundle& bundle, const TokenDocuments& train, const TokenDocuments* held_out,
           FineTuneOptions options, int64_t memory_budget);
  ~FineTune();

  /// Bytes by purpose, for the user.
  std::string plan_table() const { return plan_.table(); }

  const MemoryPlan& plan() const { return plan_; }

  int64_t planned_bytes() const { return plan_.total_bytes(); }

  int64_t steps() const { return steps_; }

  int64_t trainable_parameters() const;

  /// Tokens of a micro-batch, and micro-batches of a step.
  const StepShape& step_shape() const { return shape_; }

  /// Trains, and writes into the output directory: at its top the adapter or the Hugging Face
  /// directory, `metrics.jsonl`, what a report needs (`run.json`, `facts.json`), `checkpoint-N` for
  /// each save, the last two kept, and `best` for the lowest held-out loss. A run that is stopped
  /// saves what it has. With options.resume it goes on after the newest whole checkpoint; a
  /// finished run changes nothing.
  FineTuneResult run(const FineTuneObserver& observer);

  const LlamaModel& model() const { return *model_; }

 private:
  // Locks the output directory; how the run that is there cuts its steps.
  std::optional<StepShape> open_output();
  // Compares with the run that is there, or writes down this one.
  void open_run(const TokenDocuments& train, bool recorded);

  std::string log_path() const { return options_.output + "/metrics.jsonl"; }

  StepReport step(int64_t index, TrainingGuards* guards);
  // Forward and backward of a step's micro-batches that `place` takes; the mean loss of all of
  // them. `noise` is of the step's first token.
  double gradients(std::span<const PackedBatch> batches, EmbeddingNoise noise = {},
                   RankOf place = {});

  bool writes() const { return parallel_ == nullptr || parallel_->place().rank == 0; }

  RankOf place() const { return parallel_ == nullptr ? RankOf() : parallel_->place(); }

  // Adds numbers up over all ranks; empty for one alone.
  std::function<void(std::span<double>)> sum_ranks();
  // What rank 0 found, and the least memory of all; on every rank.
  std::optional<StepShape> agree_with_ranks(std::optional<StepShape> recorded, int64_t& budget);
  // What an update takes, added to `plan`; the first is null for one rank.
  std::pair<std::unique_ptr<DataParallel>, std::unique_ptr<Optimizer>> plan_update(
      std::span<const Parameter> parameters, MemoryPlan& plan) const;
  double mean_loss(std::span<const PackedBatch> batches);
  void probe(TrainingGuards& guards);
  void describe_gradients(StepReport& report) const;
  // What a report shows of the run.
  RunFacts facts() const;
  [[noreturn]] void fail_not_finite(int64_t step, const std::string& what);
  static void log_step(MetricLog& log, const StepReport& report);
  std::vector<Metric> settings() const;
  std::vector<StateTensor> state_tensors() const;
  TrainingState resume(const FineTuneObserver& observer);
  // The newest checkpoint, handed out to all ranks.
  std::optional<TrainingState> read_state(const FineTuneObserver& observer);
  // run() of the ranks that write nothing.
  void follow(FineTuneResult& result, const FineTuneObserver& observer);
  bool stop_asked(const FineTuneObserver& observer);
  void save_model(const std::string& directory) const;

  const ModelBundle& bundle_;
  FineTuneOptions options_;
  const TokenDocuments& train_;
  const TokenDocuments* held_out_;
  int64_t memory_budget_;
  std::string frozen_name_;
  LlamaBlockFormats blocks_;
  std::string model_sum_, data_sum_, held_out_sum_;  // checksums of what the run starts from
  std::optional<DirectoryLock> lock_;
  StepShape shape_;
  std::unique_ptr<PackedStream> stream_;
  int64_t steps_ = 0;
  MemoryPlan plan_;
  std::unique_ptr<LlamaModel> model_;
  std::unique_ptr<DataParallel> parallel_;  // null: one rank
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<Arena> arena_;
  std::vector<PackedBatch> batches_;
  std::vector<double> losses_;  // of each micro-batch
  double peak_flops_ = 0;       // measure_peak_flops() at the start
};

}  // namespace flashloom
