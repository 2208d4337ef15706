#include "flashloom/ops/attention/portable/backward_launch.cuh"

namespace flashloom::portable {

template <>
void launch_backward<float>(const BackwardParams& params, const AttentionOptions& options,
                            Stream stream) {
  launch_backward_any<float>(params, options, stream);
}

}  // namespace flashloom::portable
