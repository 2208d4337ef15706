#include "flashloom/ops/attention/sm90/forward_launch.cuh"

namespace flashloom::sm90 {
namespace {

// Tiles of 128 queries, and of keys that divide 128: blocks of a mask are multiples of both.
template <class T>
using Blocks64 = ForwardShape<T, 64, 2, 64, 4, 2, false, ForwardKind::blocks, 2>;
template <class T>
using Blocks128 = ForwardShape<T, 128, 2, 128, 2, 2, true, ForwardKind::blocks>;

}  // namespace

template <class T>
void launch_forward_blocks(const ForwardCall& call, int64_t dim) {
  if (dim <= 64) {
    launch_forward<Blocks64<T>>(call);
  } else {
    launch_forward<Blocks128<T>>(call);
  }
}

template void launch_forward_blocks<__nv_bfloat16>(const ForwardCall& call, int64_t dim);
template void launch_forward_blocks<__half>(const ForwardCall& call, int64_t dim);

}  // namespace flashloom::sm90
