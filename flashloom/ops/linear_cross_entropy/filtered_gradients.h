#pragma once

#include "flashloom/ops/linear_cross_entropy/linear_cross_entropy_pass.h"

namespace flashloom {

// Gradients of which a filter leaves little (LogitStorage::filtered): the chunk's logits are kept,
// and of each row only the entries that count are taken up again.

/// Before the first chunk: what label smoothing needs of the weight.
void begin_filtered_gradients(const LinearCrossEntropyPass& pass);

/// dhidden of a chunk and, if options.filter_weight_gradient, dweight. Reads logits and leaves
/// them.
void filtered_gradients(const LinearCrossEntropyPass& pass);

/// After the last: what label smoothing takes from all of dweight.
void end_filtered_gradients(const LinearCrossEntropyPass& pass);

}  // namespace flashloom
