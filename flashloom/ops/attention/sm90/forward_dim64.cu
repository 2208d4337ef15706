#include "flashloom/ops/attention/sm90/forward_launch.cuh"

namespace flashloom::sm90 {
namespace {

// ForwardShape: warpgroups of 64 queries, keys a tile, tiles of keys and of queries in flight,
// turns. docs/kernels/attention.md names the runs that chose them.
template <class T>
using Forward64 = ForwardShape<T, 64, 3, 128, 3, 2, true>;
// Short rows and windows: a warpgroup skips what it does not see in steps of 64 keys.
template <class T>
using Forward64Short = ForwardShape<T, 64, 4, 64, 6, 2, true>;
template <class T>
using Forward64Window = ForwardShape<T, 64, 4, 64, 6, 2, false>;

constexpr int64_t kShort = 1024;  // keys

}  // namespace

template <class T>
void launch_forward_64(const ForwardCall& call) {
  const AttentionVisibility& visibility = call.options.visibility;
  const int64_t keys =
      call.options.sequences.cu_key ? call.options.sequences.max_key : call.inputs.k.shape[2];
  if (visibility.left >= 0 && visibility.right >= 0) {
    // Keys that a query sees.
    if (visibility.left + visibility.right < kShort) {
      launch_forward<Forward64Window<T>>(call);
      return;
    }
  } else if (visibility.right >= 0 || visibility.left >= 0) {
    if (keys <= 2 * kShort) {
      launch_forward<Forward64Window<T>>(call);
      return;
    }
  } else if (keys <= kShort) {
    launch_forward<Forward64Short<T>>(call);
    return;
  }
  launch_forward<Forward64<T>>(call);
}

template void launch_forward_64<__nv_bfloat16>(const ForwardCall& call);
template void launch_forward_64<__half>(const ForwardCall& call);

}  // namespace flashloom::sm90
