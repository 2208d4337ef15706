#pragma once

#include "flashloom/ops/attention/portable/forward_kernel.cuh"
#include "flashloom/ops/attention/portable/launch.cuh"

namespace flashloom::portable {

/// Instantiated once an element type, in a file of its own each.
template <class T>
void launch_forward(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                    const AttentionOptions& options, Stream stream);

template <class Shape>
void launch_forward_shape(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                          const AttentionOptions& options, DType operand, Stream stream) {
  const bool packed = static_cast<bool>(options.sequences.cu_query);
  ForwardParams params;
  params.problem = make_problem(inputs, options, operand, {Shape::kRows, Shape::kKeys});
  params.out = rows_view(outputs.out, packed, operand);
  params.lse = scalar_view(outputs.lse, packed);
  params.entropy = scalar_view(outputs.entropy, packed);
  params.entropy_order = outputs.entropy_order;
  params.tiles =
      static_cast<int32_t>(tile_count(params.problem.source.max_query, params.problem.tile.rows));
  const int64_t blocks =
      int64_t{params.tiles} * params.problem.source.heads * params.problem.source.sequences;
  launch(&attention_forward_kernel<Shape>, dim3(static_cast<unsigned>(blocks)), Shape::kThreads,
         Shape::kSharedBytes, params, stream, "attention_forward_kernel");
}

/// 64 queries beside 64 keys; in f32 fewer keys, so that rows of 256 still fit the 99 KB of shared
/// memory that compute capability 8.6 and 8.9 have.
template <class T>
void launch_forward_any(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                        const AttentionOptions& options, DType operand, Stream stream) {
  constexpr bool kWide = sizeof(T) == 4;
  const int64_t dim = std::max(inputs.q.dim(-1), inputs.v.dim(-1));
  if (dim <= 64) {
    launch_forward_shape<ForwardShape<T, 64, 4, kWide ? 32 : 64>>(outputs, inputs, options, operand,
                                                                  stream);
  } else if (dim <= 128) {
    launch_forward_shape<ForwardShape<T, 128, 4, kWide ? 32 : 64>>(outputs, inputs, options,
                                                                   operand, stream);
  } else {
    launch_forward_shape<ForwardShape<T, 256, kWide ? 2 : 4, kWide ? 32 : 64>>(
        outputs, inputs, options, operand, stream);
  }
}

}  // namespace flashloom::portable
