#pragma once

#include <cstdint>

namespace flashloom {

/// Bytes read plus bytes written a second when all threads copy memory, `working_set` bytes of
/// source and target together: the bound of an operation that moves memory and computes little. A
/// small working set measures the caches. Takes some 50 ms and allocates `working_set` bytes.
double measure_copy_bytes_per_second(int64_t working_set);

}  // namespace flashloom
