#pragma once

#include <cstdint>
#include <optional>

#include "flashloom/ops/attention/sm90/forward_launch.cuh"

namespace flashloom::sm90 {

/// The kernel for narrow bands, where tiles of 64 queries see at most three neighbouring tiles of
/// 64 keys: which of these comes first for tile 0 of queries, or nothing if it does not take the
/// call. The call must need no block mask and no rule (has_rule()).
std::optional<int32_t> forward_band_shift(const ForwardCall& call);

/// Whether it is faster than the others: with a window whose borders are the diagonals of the first
/// and the last of the three tiles, or a key beside them (others hide pairs in all three; 64 keys
/// to one side took 92 us instead of 86, run win5), and from eight tiles of queries a
/// multiprocessor on (384 in all took 11.6 us instead of 10.3, 6144 took 78 instead of 88, runs
/// win4, win5).
bool forward_band_pays(const ForwardCall& call, int32_t shift);

/// For tests: it always pays.
inline bool forward_band_always = false;

template <class T>
void launch_forward_band(const ForwardCall& call, int32_t shift);

}  // namespace flashloom::sm90
