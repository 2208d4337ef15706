#include "flashloom/ops/attention/sm90/backward_variants.cuh"

namespace flashloom::sm90 {
namespace {

// Causal, blocks of so few steps lose more where late dQ starts and ends than it gains: at S 1024
// (6 steps of 80 queries) 310 TFLOP/s with it in turn and not late, 292 late; at 2048 (12) 394 and
// 401.
constexpr int64_t kFewSteps = 9;

template <class Fast>
bool is_short(const BackwardCall& call) {
  const auto& [left, right] = call.options.visibility;
  return is_exact<Fast>(call.inputs) && left < 0 && right >= 0 &&
         steps_of_block(call.inputs, call.options, Fast::kQueries) < kFewSteps;
}

}  // namespace

void launch_backward_128(const BackwardCall& call, std::byte* memory, cudaStream_t stream) {
  with_storage(call.inputs.q.dtype, [&](auto storage) {
    using T = decltype(storage);
    using Fast = Backward128Fast<T>;
    using InTurn = Backward128<T, true>;
    if (is_short<Fast>(call)) {
      launch_backward_in_turn<InTurn>(call, memory, stream);
    } else {
      launch_backward_mode<Backward128<T, false>, Fast, InTurn>(call, memory, stream);
    }
  });
}

}  // namespace flashloom::sm90
