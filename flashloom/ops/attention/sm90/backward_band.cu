#include "flashloom/ops/attention/sm90/backward_band.cuh"
#include "flashloom/ops/attention/sm90/backward_variants.cuh"

namespace flashloom::sm90 {
namespace {

int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Tiles of a block: as few waves of blocks as long runs allow, all full. A head's `tiles` are cut
// at the same places for each of the heads, whose blocks then read the same lines of memory at a
// time: with blocks that went on from head to head, all as long, 0.80 to 0.84 of the rate. A run
// computes about a tile's worth beside it, so a short one is not worth its block: runs of up to 16
// reach 0.91 to 0.99 of the rate of runs of up to 32, those of up to 64 the same.
int32_t tiles_of_block(int64_t tiles, int64_t heads, int64_t slots) {
  constexpr int64_t kLeast = 4;
  constexpr int64_t kMost = 32;
  const int64_t waves = std::max<int64_t>(1, divide_up(tiles * heads, slots * kMost));
  const int64_t runs = std::max<int64_t>(1, waves * slots / heads);
  return static_cast<int32_t>(std::max(kLeast, divide_up(tiles, runs)));
}

template <class Shape>
void launch(const BackwardCall& call, cudaStream_t stream) {
  const auto& [gradients, inputs, saved, options] = call;
  const DType storage = inputs.q.dtype;
  BandParams params = {};
  params.problem = make_problem(as_batched(inputs.q), as_batched(inputs.k), options);
  const Problem& problem = params.problem;
  params.columns = static_cast<int32_t>(inputs.q.dim(-1));
  params.value_columns = static_cast<int32_t>(inputs.v.dim(-1));
  params.lse = row_tensor(saved.lse, true, storage);
  if (saved.dlse) {
    params.dlse = row_tensor(saved.dlse, true, storage);
  }
  params.dq = row_tensor(gradients.dq, false, storage);
  params.dk = row_tensor(gradients.dk, false, storage);
  params.dv = row_tensor(gradients.dv, false, storage);
  params.scale = score_scale(options, inputs.q.dim(-1));
  params.accumulate = gradients.accumulate;
  params.sends = !params.accumulate && !params.dq.wide && !params.dk.wide && !params.dv.wide;
  if (params.sends) {
    params.dq_map = cuda::make_tile_map(as_batched(gradients.dq), Shape::kTile);
    params.dk_map = cuda::make_tile_map(as_batched(gradients.dk), Shape::kTile);
    params.dv_map = cuda::make_tile_map(as_batched(gradients.dv), Shape::kTile);
  }
  params.out = cuda::make_tile_map(as_batched(saved.out), Shape::kTile / 2);
  const int64_t tiles = problem.cu_key != nullptr
                            ? problem.total_key / Shape::kTile + problem.batch
                            : divide_up(problem.key_length, Shape::kTile) * problem.batch;
  params.tiles = static_cast<int32_t>(tiles);
  params.run = tiles_of_block(tiles, problem.heads, device_multiprocessors() * Shape::kBlocks);
  const int64_t blocks = divide_up(tiles, params.run) * problem.heads;
  launch_backward_kernel<Shape>(
      &attention_backward_kernel_band<Shape>, "attention_backward_kernel_band",
      dim3(static_cast<uint32_t>(blocks)), params, inputs, saved.dout, stream);
}

}  // namespace

bool is_band(const BackwardCall& call) {
  const auto& [gradients, inputs, saved, options] = call;
  const auto& [left, right] = options.visibility;
  const AttentionSequences& sequences = options.sequences;
  const AttentionPositions& positions = options.positions;
  constexpr int64_t kReach = BandShape<__half>::kTile;
  const bool same_rows =
      inputs.q.dim(-2) == inputs.k.dim(-2) && sequences.cu_query.data == sequences.cu_key.data &&
      sequences.max_query == sequences.max_key && !sequences.used_query && !sequences.used_key;
  const bool same_place = positions.query_start ? *positions.query_start == *positions.key_start
                                                : positions.offset.value_or(0) == 0;
  return backward_width(inputs) <= BandShape<__half>::kDim && left > 0 && left <= kReach &&
         right > 0 && right <= kReach && same_rows && same_place &&
         inputs.q.dim(-3) == inputs.k.dim(-3) && !gradients.dsinks;
}

void launch_backward_band(const BackwardCall& call, cudaStream_t stream) {
  with_storage(call.inputs.q.dtype,
               [&](auto storage) { launch<BandShape<decltype(storage)>>(call, stream); });
}

}  // namespace flashloom::sm90
