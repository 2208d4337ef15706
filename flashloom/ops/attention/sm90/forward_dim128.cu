#include "flashloom/ops/attention/sm90/forward_launch.cuh"

namespace flashloom::sm90 {
namespace {

// See forward_dim64.cu.
template <class T>
using Forward96 = ForwardShape<T, 96, 3, 96, 2, 2, true>;
// For short rows that 192 queries and 96 keys a tile fill badly.
template <class T>
using Forward96Short = ForwardShape<T, 96, 2, 128, 2, 2, false>;
template <class T>
using Forward128 = ForwardShape<T, 128, 2, 128, 2, 2, true>;
// Where all is visible, turns only hold the warpgroups up.
template <class T>
using Forward128Full = ForwardShape<T, 128, 2, 128, 2, 2, false>;

// Whether Forward96Short is taken. It is faster (runs fwd34, fwd36) where a pair of rows costs it 4
// to 11 % more, but 512 or 1024 rows take 0.79 or 0.86 of the pairs in whole tiles, and with a
// window of 256 keys (0.87 to 0.91 of the time).
bool takes_short_96(const ForwardCall& call) {
  const auto& [left, right] = call.options.visibility;
  const AttentionSequences& sequences = call.options.sequences;
  constexpr int64_t kWindow = 512;  // keys; wider ones are not measured
  if (sequences.cu_query || sequences.used_query || sequences.used_key) {
    return false;  // how long rows are is on the device
  }
  if (left >= 0 && right >= 0) {
    return left + right <= kWindow;
  }
  const auto pairs = [&](int64_t rows, int64_t keys) {
    const auto padded = [](int64_t length, int64_t tile) {
      return static_cast<double>((length + tile - 1) / tile * tile);
    };
    return padded(call.inputs.q.dim(-2), rows) * padded(call.inputs.k.dim(-2), keys);
  };
  return 1.08 * pairs(128, 128) < pairs(192, 96);
}

}  // namespace

template <class T>
void launch_forward_128(const ForwardCall& call, int64_t dim) {
  if (dim <= 96 && takes_short_96(call)) {
    launch_forward<Forward96Short<T>>(call);
  } else if (dim <= 96) {
    launch_forward<Forward96<T>>(call);
  } else if (call.options.visibility.left < 0 && call.options.visibility.right < 0) {
    launch_forward<Forward128Full<T>>(call);
  } else {
    launch_forward<Forward128<T>>(call);
  }
}

template void launch_forward_128<__nv_bfloat16>(const ForwardCall& call, int64_t dim);
template void launch_forward_128<__half>(const ForwardCall& call, int64_t dim);

}  // namespace flashloom::sm90
