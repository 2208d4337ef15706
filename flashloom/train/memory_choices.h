#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "flashloom/core/memory_plan.h"
#include "flashloom/io/model_config.h"
#include "flashloom/models/llama/llama_adapters.h"
#include "flashloom/models/llama/llama_frozen.h"
#include "flashloom/models/llama/llama_recompute.h"
#include "flashloom/text/packed_batches.h"
#include "flashloom/train/optimizer.h"

namespace flashloom {

/// A run whose memory is asked for, before there is data: no weight is read.
struct MemoryQuestion {
  ModelConfig config;
  std::optional<LoraOptions> lora;  // absent: all weights are trained
  LlamaFrozen frozen = {};          // without adapters: what is not trained
  int64_t sequence_length = 1024;   // longest document
  int64_t batch_tokens = 1024;      // of an optimizer step
  OptimizerOptions optimizer;
  int ranks = 1;                  // that share the optimizer's state; the plan is of rank 0
  int64_t process_bytes = 0;      // what the program holds outside the plan
  LlamaBlockFormats blocks = {};  // QLoRA: linears that stay in blocks
};

/// How fast the machine is, for estimates of time.
struct MachineRates {
  double flops = 0;  // measure_peak_flops()
  double bytes = 0;  // copied a second, far beyond the caches
};

/// Takes some 100 ms.
MachineRates measure_machine();

/// One way to run it: what it costs.
struct MemoryChoice {
  LlamaRecompute recompute = LlamaRecompute::norms;
  OptimizerMoments moments = OptimizerMoments::f32;
  DType weight_dtype = DType::f32;
  StepShape shape;  // micro-batches of a step
  int64_t weights = 0, adapters = 0, gradients = 0, optimizer = 0, activations = 0;
  int64_t workspace = 0;  // with what stages share, and the batch
  int64_t process = 0;
  int64_t bytes = 0;   // together
  double seconds = 0;  // of an optimizer step, estimated

  /// "--recompute blocks --optimizer adamw8bit --weight-dtype bf16"
  std::string flags() const;
};

/// Memory of the choice's recompute level, moments, weight type and shape (absent: the smallest).
MemoryChoice memory_of(const MemoryQuestion& question, const MemoryChoice& choice);

/// Every combination of recompute level, optimizer, weight type and micro-batches (whole steps,
/// halves, quarters … down to a document).
std::vector<MemoryChoice> memory_choices(const MemoryQuestion& question, const MachineRates& rates);

/// The one to take: the fastest that fits `budget`, where bf16 weights and 8-bit moments each count
/// as if they took a quarter longer, since they change what is learnt. Among those up to 3 %
/// slower, the estimate's error, f32 goes before fewer bits, then little memory before much. Absent
/// if none fits.
std::optional<MemoryChoice> best_choice(std::span<const MemoryChoice> choices, int64_t budget);

/// The one that needs least. Throws InvalidArgument for no choices.
MemoryChoice smallest_choice(std::span<const MemoryChoice> choices);

/// What to say when a run does not fit: the flags that do, or that none do and what the smallest
/// takes.
std::string memory_advice(const MemoryQuestion& question, int64_t budget);

/// What the program holds beside the plan at `present` anonymous bytes: these, stacks and buffers
/// of its threads, and files on their way to the disk.
int64_t process_bytes(int64_t present, int threads);

/// An estimate of `present` for a model that is not opened: the program, and its tokenizer.
int64_t expected_process_bytes(const ModelConfig& config);

}  // namespace flashloom
