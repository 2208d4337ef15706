#include "flashloom/ops/attention/sm90/forward_launch.cuh"

namespace flashloom::sm90 {
namespace {

// Tiles of 128 queries, and of keys that divide 128: blocks of a mask are multiples of both.
template <class T>
using General64 = ForwardShape<T, 64, 2, 128, 3, 2, true, ForwardKind::general>;
template <class T>
using General128 = ForwardShape<T, 128, 2, 128, 2, 2, true, ForwardKind::general>;
template <class T>
using General256 = ForwardShape<T, 256, 2, 32, 4, 1, true, ForwardKind::general>;  // 64 keys spill

}  // namespace

template <class T>
void launch_forward_general(const ForwardCall& call, int64_t dim) {
  if (dim <= 64) {
    launch_forward<General64<T>>(call);
  } else if (dim <= 128) {
    launch_forward<General128<T>>(call);
  } else {
    launch_forward<General256<T>>(call);
  }
}

template void launch_forward_general<__nv_bfloat16>(const ForwardCall& call, int64_t dim);
template void launch_forward_general<__half>(const ForwardCall& call, int64_t dim);

}  // namespace flashloom::sm90
