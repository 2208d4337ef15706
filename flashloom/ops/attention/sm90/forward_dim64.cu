#include "flashloom/ops/attention/sm90/forward_launch.cuh"

namespace flashloom::sm90 {
namespace {

// ForwardShape: warpgroups of 64 queries, keys a tile, tiles of keys and of queries in flight,
// turns. docs/kernels/attention.md names the runs that chose them.
template <class T>
using Forward64 = ForwardShape<T, 64, 3, 128, 3, 2, true>;
// Short rows and windows: a warpgroup skips what it does not see in steps of 64 keys.
template <class T>
using Forward64Short = ForwardShape<T, 64, 4, 64, 8, 2, false>;

constexpr int64_t kShort = 1024;  // keys

}  // namespace

template <class T>
void launch_forward_64(const ForwardCall& call) {
  const AttentionVisibility& visibility = call.options.visibility;
  const int64_t keys =
      call.options.sequences.cu_key ? call.options.sequences.max_key : call.inputs.k.shape[2];
  // Keys that a query sees: at most, or about.
  const bool causal = visibility.left >= 0 || visibility.right >= 0;
  const int64_t seen = visibility.left >= 0 && visibility.right >= 0
                           ? visibility.left + visibility.right
                           : (causal ? keys / 2 : keys);
  if (seen <= kShort) {
    launch_forward<Forward64Short<T>>(call);
  } else {
    launch_forward<Forward64<T>>(call);
  }
}

template void launch_forward_64<__nv_bfloat16>(const ForwardCall& call);
template void launch_forward_64<__half>(const ForwardCall& call);

}  // namespace flashloom::sm90
