#include "flashloom/ops/attention/sm90/backward_near.cuh"
#include "flashloom/ops/attention/sm90/backward_variants.cuh"

namespace flashloom::sm90 {
namespace {

template <class Shape>
void launch(const BackwardCall& call, std::byte* memory, cudaStream_t stream) {
  const AttentionInputs& inputs = call.inputs;
  const BackwardWorkspace place =
      backward_workspace(inputs, call.saved, call.options, kQueryPlace, 0);
  const BackwardRowParams rows = backward_rows(call, place, memory);
  launch_backward_prepare<row_lanes(Shape::kDim), kQueryPlace>(rows, place.places, stream);
  NearParams params = {};
  params.keys = backward_params(call, rows, Shape::kKeys);
  params.queries = queries_params(call, rows, Shape::kQueries);
  params.queries.descending = false;  // the order of the keys
  params.key_heads = static_cast<int32_t>(backward_heads(rows.problem));
  params.heads = static_cast<int32_t>(queries_heads(rows.problem));
  const int32_t group = rows.problem.heads_per_key;
  const dim3 grid(static_cast<uint32_t>(1 + group),
                  static_cast<uint32_t>(std::max(params.keys.key_tiles, params.queries.blocks)),
                  static_cast<uint32_t>(std::max(params.key_heads, params.heads / group)));
  launch_backward_kernel<Shape>(&attention_backward_kernel_near<Shape>,
                                "attention_backward_kernel_near", grid, params, inputs,
                                call.saved.dout, stream, true);
  launch_backward_sinks(rows, kQueryPlace, stream);
}

}  // namespace

void launch_backward_near(const BackwardCall& call, std::byte* memory, cudaStream_t stream) {
  if (is_band(call)) {
    launch_backward_band(call, stream);
    return;
  }
  with_storage(call.inputs.q.dtype, [&](auto storage) {
    using T = decltype(storage);
    if (backward_width(call.inputs) > 64) {
      launch<NearShape<T, 128, 2, 2>>(call, memory, stream);
    } else {
      launch<NearShape<T, 64, 3, 3>>(call, memory, stream);
    }
  });
}

}  // namespace flashloom::sm90
