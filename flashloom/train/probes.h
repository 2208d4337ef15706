#pragma once

#include <functional>
#include <span>

#include "flashloom/core/tensor_view.h"
#include "flashloom/models/parameter.h"
#include "flashloom/text/packed_batches.h"

namespace flashloom {

/// Experiments on a model that is about to train, on a few dozen made-up tokens. They use the code
/// of the training steps themselves, which is handed in.

/// What the batches of probes need of a model's plan.
inline constexpr int64_t kProbeLength = 16;
inline constexpr int64_t kProbeDocuments = 2;
inline constexpr int64_t kProbeTokens = kProbeDocuments * kProbeLength;

/// Whether packed documents see each other: changes the tokens of one document, and looks whether
/// the losses of another change by a single bit. `token_losses` runs a batch forward and returns
/// the loss of each token, (T) f32. Returns the number of losses that changed; it should be 0.
int64_t probe_packing(int64_t vocabulary_size,
                      const std::function<ConstTensorView(const PackedBatch&)>& token_losses);

/// What one optimizer step's gradients promise, against what the loss does.
struct GradientProbe {
  double promised = 0;  // change of the loss that the gradients predict for a small move
  double measured = 0;  // the change itself
  /// Of a step of two micro-batches: |g - (n1 g1 + n2 g2) / (n1 + n2)| / |g|, where g1 and g2 are
  /// the gradients of either alone, and n their loss-bearing tokens.
  double normalisation_error = 0;
};

/// Moves sampled weights a little along their gradients, both ways, measures the mean loss, and
/// puts them back bit for bit. `gradients` sets the gradients of the mean loss of a step of several
/// micro-batches with very different numbers of loss-bearing tokens, so that a wrong normalisation
/// shows; `loss` is that mean by a forward pass alone.
GradientProbe probe_gradients(int64_t vocabulary_size, std::span<const Parameter> parameters,
                              const std::function<void(std::span<const PackedBatch>)>& gradients,
                              const std::function<double(std::span<const PackedBatch>)>& loss);

}  // namespace flashloom
