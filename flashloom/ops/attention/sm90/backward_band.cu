#include "flashloom/ops/attention/sm90/backward_band.cuh"
#include "flashloom/ops/attention/sm90/backward_variants.cuh"

namespace flashloom::sm90 {
namespace {

int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

struct BandCut {
  int32_t tiles;            // of the first heads' blocks
  int64_t heads;            // of the first ones
  int32_t tiles_of_others;  // of the other heads' blocks
};

// Tiles of a block: waves of blocks times the tiles of each should be few. A run also computes
// about a tile's worth beside it. Where not all heads fill the waves, those that do may have long
// runs, and shorter ones make up a last wave: 384 heads of 16 tiles, 264 blocks at a time, take
// 264 of 16, then 240 of 8, where runs of 8 would take three waves.
BandCut cut_heads(int64_t tiles, int64_t heads, int32_t slots) {
  constexpr int32_t kLeast = 4;
  constexpr int32_t kMost = 32;
  const auto cost = [&](int32_t run) { return std::min<int64_t>(run, tiles) + 1; };
  BandCut best = {};
  int64_t least = INT64_MAX;
  for (int32_t run = kLeast; run <= kMost; ++run) {
    const int64_t blocks = divide_up(tiles, run);  // a head
    const int64_t whole = divide_up(blocks * heads, slots) * cost(run);
    if (whole < least) {
      least = whole;
      best = {run, heads, run};
    }
    const int64_t waves = blocks * heads / slots;
    const int64_t first = waves * slots / blocks;  // heads
    for (int32_t other = kLeast; other < run && waves * cost(run) + cost(other) < least; ++other) {
      const int64_t others = divide_up(tiles, other) * (heads - first);
      const int64_t mixed = waves * cost(run) + divide_up(others, slots) * cost(other);
      if (mixed < least) {
        least = mixed;
        best = {run, first, other};
      }
    }
  }
  return best;
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
  const bool packed = problem.cu_key != nullptr;
  const int64_t heads = int64_t{packed ? 1 : problem.batch} * problem.heads;
  const int64_t rows = packed ? problem.total_key : problem.key_length;
  const int64_t tiles = (rows + Shape::kTile - 1) / Shape::kTile;
  const BandCut cut = cut_heads(tiles, heads, device_multiprocessors() * Shape::kBlocks);
  // Sequences of a packed batch start runs of their own.
  const auto runs = [&](int32_t run) {
    const int64_t own = int64_t{run} * Shape::kTile;
    return BandRuns{
        run, static_cast<int32_t>(packed ? rows / own + problem.batch : divide_up(rows, own))};
  };
  params.first = runs(cut.tiles);
  params.others = runs(cut.tiles_of_others);
  params.first_heads = static_cast<int32_t>(cut.heads);
  const int64_t blocks =
      cut.heads * params.first.blocks + (heads - cut.heads) * params.others.blocks;
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
