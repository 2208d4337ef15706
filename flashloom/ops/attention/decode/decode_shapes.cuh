#pragma once

#include <algorithm>

#include "flashloom/ops/attention/decode/decode.h"
#include "flashloom/ops/attention/decode/decode_launch.cuh"

namespace flashloom::decode {

// Up to 16 rows (query heads of a group x queries): each warp is a team with its own tiles of keys.
// More rows: tiles of 64 rows, four warps share tiles of keys. Numbers: teams, steps of 16 keys a
// tile, stages, blocks a multiprocessor; about 64 KB of a multiprocessor's keys are under way:
// twice that makes the memory slower. docs/kernels/attention.md names the runs that chose them.
template <class T, int kDim, int kTeams, int kSteps, int kStages, int kResident>
using FewRows = Shape<T, kDim, 1, kTeams, kSteps, kStages, kResident>;
template <class T, int kDim, int kTeams, int kSteps, int kStages, int kResident,
          Cut kCuts = kEither>
using ManyRows = Shape<T, kDim, 4, kTeams, kSteps, kStages, kResident, false, kCuts>;
template <class T, int kDim, int kTeams, int kSteps, int kStages, int kResident>
using ManyRowsFetched = Shape<T, kDim, 4, kTeams, kSteps, kStages, kResident, true>;

/// Calls visitor.template operator()<Shape>() with the shape that fits the call.
template <class T, class Visitor>
auto with_shape(const AttentionInputs& inputs, const AttentionOptions& options, Visitor visitor) {
  const GeometrySource source = geometry_source(inputs, options);
  const int64_t dim =
      std::max(inputs.q.shape[inputs.q.rank - 1], inputs.v.shape[inputs.v.rank - 1]);
  const int64_t group = source.key_heads > 0 ? source.heads / source.key_heads : 0;
  if (group * source.max_query <= 16) {
    return dim <= 64    ? visitor.template operator()<FewRows<T, 64, 8, 2, 3, 1>>()
           : dim <= 96  ? visitor.template operator()<FewRows<T, 96, 8, 1, 2, 1>>()
           : dim <= 128 ? visitor.template operator()<FewRows<T, 128, 4, 1, 3, 2>>()
           : dim <= 192 ? visitor.template operator()<FewRows<T, 192, 6, 1, 2, 1>>()
                        : visitor.template operator()<FewRows<T, 256, 4, 1, 2, 1>>();
  }
  if (dim <= 64 && box_rows(inputs, options.sequences, 64) > 0) {
    return visitor.template operator()<ManyRowsFetched<T, 64, 2, 4, 6, 1>>();
  }
  // One block of two teams has half the pieces of two blocks of one, which begin and end sooner.
  if (dim > 64 && dim <= 128 && !cuts_units(options)) {
    return visitor.template operator()<ManyRows<T, 128, 2, 4, 2, 1, kLine>>();
  }
  return dim <= 64    ? visitor.template operator()<ManyRows<T, 64, 1, 4, 6, 2>>()
         : dim <= 128 ? visitor.template operator()<ManyRows<T, 128, 1, 4, 3, 2, kParts>>()
         : dim <= 192 ? visitor.template operator()<ManyRows<T, 192, 2, 2, 3, 1>>()
                      : visitor.template operator()<ManyRows<T, 256, 2, 2, 2, 1>>();
}

/// The launch for one storage type; a file each, so that they compile side by side.
template <class T>
void run_decode(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                std::span<std::byte> workspace, const AttentionOptions& options,
                cudaStream_t stream) {
  with_shape<T>(inputs, options, [&]<class Shape>() {
    launch_decode<Shape>(outputs, inputs, workspace, options, stream);
  });
}

extern template void run_decode<__nv_bfloat16>(const AttentionOutputs&, const AttentionInputs&,
                                               std::span<std::byte>, const AttentionOptions&,
                                               cudaStream_t);
extern template void run_decode<__half>(const AttentionOutputs&, const AttentionInputs&,
                                        std::span<std::byte>, const AttentionOptions&,
                                        cudaStream_t);

}  // namespace flashloom::decode
