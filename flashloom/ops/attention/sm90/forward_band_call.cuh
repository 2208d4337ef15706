#pragma once

#include <cstdint>
#include <optional>

#include "flashloom/ops/attention/sm90/forward_launch.cuh"

namespace flashloom::sm90 {

/// The kernel for narrow bands, where tiles of 64 queries see at most three neighbouring tiles of
/// 64 keys: which of these comes first for tile 0 of queries, or nothing if it does not take the
/// call. The call must need no block mask and no rule (has_rule()).
std::optional<int32_t> forward_band_shift(const ForwardCall& call);

/// Whether it is faster than the others: from eight tiles of queries a multiprocessor on (384 in
/// all took 11.6 us instead of 10.3, 6144 took 78 instead of 88, runs win4, win5), and with heads
/// of more than 64 columns or that share keys only with a window whose borders are the diagonals of
/// the first and the last of the three tiles, or a key beside them: the others have less to do for
/// a narrower one, this one has not (64 columns, 64 keys to one side: 79 us, the others 86, runs
/// win7, win5; not measured for others).
bool forward_band_pays(const ForwardCall& call, int32_t shift);

/// For tests: it always pays.
inline bool forward_band_always = false;

template <class T>
void launch_forward_band(const ForwardCall& call, int32_t shift);

}  // namespace flashloom::sm90
