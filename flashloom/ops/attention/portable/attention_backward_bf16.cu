#include "flashloom/ops/attention/portable/backward_launch.cuh"

namespace flashloom::portable {

template <>
void launch_backward<__nv_bfloat16>(const BackwardParams& params, const AttentionOptions& options,
                                    Stream stream) {
  launch_backward_any<__nv_bfloat16>(params, options, stream);
}

}  // namespace flashloom::portable
