#include "flashloom/ops/attention/sm90/forward_launch.cuh"

namespace flashloom::sm90 {
namespace {

// See forward_dim64.cu.
template <class T>
using Forward96 = ForwardShape<T, 96, 3, 96, 2, 2, true>;
template <class T>
using Forward128 = ForwardShape<T, 128, 2, 128, 2, 2, true>;
// Where all is visible, turns only hold the warpgroups up.
template <class T>
using Forward128Full = ForwardShape<T, 128, 2, 128, 2, 2, false>;

}  // namespace

template <class T>
void launch_forward_128(const ForwardCall& call, int64_t dim) {
  if (dim <= 96) {
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
