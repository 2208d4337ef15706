#include "flashloom/ops/attention/sm90/forward_launch.cuh"

namespace flashloom::sm90 {
namespace {

// See forward_dim64.cu. One buffer of queries: two would leave keys too few.
template <class T>
using Forward192 = ForwardShape<T, 192, 2, 96, 2, 1, true>;
template <class T>
using Forward256 = ForwardShape<T, 256, 2, 64, 2, 1, true>;

}  // namespace

template <class T>
void launch_forward_256(const ForwardCall& call, int64_t dim) {
  if (dim <= 192) {
    launch_forward<Forward192<T>>(call);
  } else {
    launch_forward<Forward256<T>>(call);
  }
}

template void launch_forward_256<__nv_bfloat16>(const ForwardCall& call, int64_t dim);
template void launch_forward_256<__half>(const ForwardCall& call, int64_t dim);

}  // namespace flashloom::sm90
