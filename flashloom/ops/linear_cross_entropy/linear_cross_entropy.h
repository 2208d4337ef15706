#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "flashloom/core/device.h"
#include "flashloom/core/labels.h"
#include "flashloom/core/tensor_view.h"

namespace flashloom {

struct LinearCrossEntropyOptions {
  /// The gradients' factor: 1 / (loss-bearing tokens of the whole optimizer step).
  float gradient_scale = 1;
  float label_smoothing = 0;  // e: (1 - e)(lse - z_y) + e (lse - mean z)
  float z_loss = 0;           // lambda: adds lambda lse^2
  float softcap = 0;          // c: z becomes c tanh(z / c)

  /// Softmax entries below this count as 0 in dhidden, the label's excepted; 0 keeps all. What is
  /// left are a few rows of the weight, so that nearly all of dhidden's operations fall away.
  /// Wijmans et al. use 2^-12. At most 1 / filter entries of a row are kept, and what a row loses
  /// is its tail, the sum q of the probabilities below the filter: an element of dhidden moves by
  /// at most gradient_scale |1 + 2 z_loss lse| q max|weight|. Much for a model that knows nothing
  /// yet.
  float filter = 0;
  /// Filters dweight too. Tokens that are rare then never learn that they are: for fine-tuning
  /// only.
  bool filter_weight_gradient = false;
  /// With a filter: puts those entries of the vocabulary first that many rows keep, anew for each
  /// chunk of rows, and takes them up in one dense product; the others are gathered one by one, as
  /// all are without. The same entries count, in another order of summation. On a CPU it saves
  /// little (-4 to 12 % of a call, bench/results): rows of language keep some 200 entries.
  bool sort_vocabulary = false;
};

/// Losses of logits = hidden weight^T without ever storing them: the logits of a few rows, or of a
/// tile, live in the workspace only. Rows whose label is kIgnoredLabel cost nothing.
///
/// Shapes:  loss (T) f32, in nats, 0 on ignored rows; hidden (T, C), weight (V, C), labels (T) i32,
///          already shifted: labels[t] is the target of hidden[t]. f32, rows at any stride; the
///          weight may be bf16, except with a filter.
///          dhidden optional (T, C): overwritten, 0 on ignored rows. dweight optional (V, C) f32:
///          added to. Gradients are formed in the same pass, times options.gradient_scale.
///          With neither (evaluation) a tile of logits is all that lives.
/// Cost:    2 N C V operations for the loss of N loss-bearing rows, 2 N C V more for each gradient
///          that is not filtered: nothing is computed twice.
/// Memory:  workspace of linear_cross_entropy_workspace_bytes(), at most about 100 MB for any
///          number of tokens (unless the logits of 12 rows need more).
/// Order:   the same bits for any number of threads.
/// Faults:  a logit that is NaN or +infinity makes the loss (and the gradients) of its row NaN.
/// Filter:  drops entries, not whole blocks of them as a kernel of matrix tiles must, so what
/// counts
///          does not depend on the vocabulary's order.
///          Label smoothing e takes scale e / V from the gradient of every logit, so that no entry
///          could be dropped; but these parts are known without logits, and are added exactly:
///            dz_v = scale (p_v (1 + 2 z_loss lse) - (1 - e) [v = y]) - scale e / V,
///            dhidden = sum of the first over the entries kept, times w_v  - scale e / V sum_v w_v,
///            dweight_v (if filtered) = likewise with hidden_t             - scale e / V sum_t h_t.
///          The sum over all w_v is taken once a call, that over h_t once a chunk. With a softcap
///          each part has a slope that depends on its logit: then filter and smoothing exclude each
///          other.
/// Throws:  InvalidArgument, also for a label outside [0, V) that is not kIgnoredLabel.
/// Source:  Wijmans et al. 2024 (cut cross-entropy); Hsu et al. 2024 (chunks of rows).
void linear_cross_entropy(TensorView loss, TensorView dhidden, TensorView dweight,
                          ConstTensorView hidden, ConstTensorView weight, ConstTensorView labels,
                          std::span<std::byte> workspace,
                          const LinearCrossEntropyOptions& options = {}, Stream stream = {});

/// `tokens` bounds the rows that bear loss. Without `keeps_logits` (the gradient of hidden alone,
/// neither filter nor label smoothing) no chunk of logits is kept.
int64_t linear_cross_entropy_workspace_bytes(int64_t tokens, int64_t channels, int64_t vocabulary,
                                             bool with_gradients, bool keeps_logits = true);

/// The oracle: float64 plain loops. f32 or f64 tensors (labels i32).
void linear_cross_entropy_reference(TensorView loss, TensorView dhidden, TensorView dweight,
                                    ConstTensorView hidden, ConstTensorView weight,
                                    ConstTensorView labels,
                                    const LinearCrossEntropyOptions& options = {});

}  // namespace flashloom
