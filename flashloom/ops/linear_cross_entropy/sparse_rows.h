#pragma once

#include <cstdint>

namespace flashloom {

/// Writes the places of all logits >= `threshold`, in order, to `found` (room for `count`); returns
/// how many. NaN is not found.
int64_t find_logits(const float* logits, int64_t count, float threshold, int32_t* found);

/// sum += the rows `index[0…count)` of a matrix, each times its factor, in their order.
void add_rows(float* sum, int64_t columns, const float* matrix, int64_t stride,
              const int32_t* index, const float* factors, int64_t count);

}  // namespace flashloom
