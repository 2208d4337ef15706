#include "flashloom/ops/attention/portable/attention_portable.h"
#include "flashloom/ops/attention/portable/launch.cuh"
#include "flashloom/ops/attention/portable/pairs.cuh"

namespace flashloom::portable {
namespace {

constexpr int kMergeWarps = 4;

struct MergeParams {
  RowsView out, lse, parts, part_lse;
  int64_t part = 0, part_of_lse = 0;  // strides of the parts
  const float* sinks = nullptr;
  int64_t sink_stride = 0;
  int64_t total = 0;  // rows of all heads
  int32_t count = 0;  // parts
  int32_t heads = 0, rows = 0, width = 0;
};

// A warp a row: out = sum exp(lse_p - lse) part_p.
__global__ void __launch_bounds__(32 * kMergeWarps)
    attention_merge_kernel(const __grid_constant__ MergeParams params) {
  const int64_t at = int64_t{blockIdx.x} * kMergeWarps + threadIdx.x / 32;
  if (at >= params.total) {
    return;
  }
  const auto of_head = static_cast<int32_t>(at / params.rows);
  const int64_t row = at - int64_t{of_head} * params.rows;
  const int32_t head = of_head % params.heads;
  const int32_t sequence = of_head / params.heads;
  const float* logs = scalar_at(params.part_lse, sequence, head, row);
  const float sink =
      params.sinks != nullptr ? params.sinks[head * params.sink_stride] : -infinity();
  float top = sink;
  for (int32_t p = 0; p < params.count; ++p) {
    top = fmaxf(top, logs[p * params.part_of_lse]);
  }
  const float base = top == -infinity() ? 0 : top;
  float total = expf(sink - base);
  for (int32_t p = 0; p < params.count; ++p) {
    total += expf(logs[p * params.part_of_lse] - base);
  }
  const float* part = scalar_at(params.parts, sequence, head, row);
  const HeadRows out = head_rows(params.out, sequence, head, 0);
  char* to = const_cast<char*>(out.data) + row * out.row_bytes;
  for (auto e = static_cast<int32_t>(threadIdx.x % 32); e < params.width; e += 32) {
    float sum = 0;
    for (int32_t p = 0; p < params.count; ++p) {
      // A part that saw no key may hold anything.
      const float weight = expf(logs[p * params.part_of_lse] - base);
      sum += weight > 0 ? weight * part[p * params.part + e] : 0;
    }
    store_float(to, params.out.dtype, e, total > 0 ? sum / total : 0);
  }
  if (threadIdx.x % 32 == 0 && params.lse.data != nullptr) {
    *scalar_at(params.lse, sequence, head, row) = total > 0 ? base + logf(total) : -infinity();
  }
}

}  // namespace

void attention_merge(const TensorView& out, const TensorView& lse, const ConstTensorView& parts,
                     const ConstTensorView& part_lse, const ConstTensorView& sinks, Stream stream) {
  if (out.size() == 0) {
    return;
  }
  const bool packed = out.rank == 3;
  // One part of `view`, whose first dimension counts the parts.
  const auto first_part = [](ConstTensorView view) {
    for (int i = 0; i + 1 < view.rank; ++i) {
      view.shape[i] = view.shape[i + 1];
      view.strides[i] = view.strides[i + 1];
    }
    --view.rank;
    return view;
  };
  MergeParams params;
  params.out = rows_view(out, packed, DType::f32);
  params.lse = scalar_view(lse, packed);
  params.parts = rows_view(first_part(parts), packed, DType::f32);
  params.part_lse = scalar_view(first_part(part_lse), packed);
  params.part = parts.stride(0);
  params.part_of_lse = part_lse.stride(0);
  if (sinks) {
    params.sinks = static_cast<const float*>(sinks.data);
    params.sink_stride = sinks.stride(0);
  }
  params.count = static_cast<int32_t>(parts.dim(0));
  params.heads = static_cast<int32_t>(out.dim(-3));
  params.rows = static_cast<int32_t>(out.dim(-2));
  params.width = static_cast<int32_t>(out.dim(-1));
  params.total = out.size() / params.width;
  launch(&attention_merge_kernel,
         dim3(static_cast<unsigned>(tile_count(params.total, kMergeWarps))), 32 * kMergeWarps, 0,
         params, stream, "attention_merge_kernel");
}

}  // namespace flashloom::portable
