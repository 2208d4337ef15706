#include "flashloom/ops/attention/decode/decode_shapes.cuh"

namespace flashloom::decode {

template void run_decode<__half>(const AttentionOutputs&, const AttentionInputs&,
                                 std::span<std::byte>, const AttentionOptions&, cudaStream_t);

}  // namespace flashloom::decode
