#include "flashloom/ops/attention/portable/attention_portable.h"
#include "flashloom/ops/attention/portable/launch.cuh"

// What validate_attention_index_data() says on the CPU, for index data that lies on the device.
// Kernels clamp such data, so this only tells.

namespace flashloom::portable {
namespace {

constexpr int kFaultThreads = 128;

struct FaultParams {
  GeometrySource source;
  const int32_t* page_table = nullptr;
  int64_t page_table_stride = 0;
  int32_t page_size = 1;
  int32_t page_count = 0;
  int32_t partial_count = 0;
  int32_t* status = nullptr;
};

__device__ bool bad_offsets(const int32_t* offsets, int32_t count, int32_t limit) {
  bool bad = false;
  for (auto i = static_cast<int32_t>(threadIdx.x); i <= count; i += kFaultThreads) {
    bad = bad || offsets[i] < (i > 0 ? offsets[i - 1] : 0) || offsets[i] > limit;
  }
  return bad;
}

__device__ bool bad_blocks(const GeometryBlocks& blocks, int64_t outer_blocks, int64_t inner_blocks,
                           int32_t partial_count) {
  if (blocks.offsets == nullptr) {
    return false;
  }
  bool bad = bad_offsets(blocks.offsets, static_cast<int32_t>(outer_blocks), blocks.entry_count);
  for (int64_t row = threadIdx.x; row < outer_blocks; row += kFaultThreads) {
    const int32_t end = min(blocks.offsets[row + 1], blocks.entry_count);
    int32_t previous = -1;
    for (int32_t e = max(blocks.offsets[row], 0); e < end; ++e) {
      const int32_t partial = blocks.partial != nullptr ? blocks.partial[e] : -1;
      bad = bad || blocks.entries[e] <= previous || blocks.entries[e] >= inner_blocks ||
            partial < -1 || partial >= partial_count;
      previous = blocks.entries[e];
    }
  }
  return bad;
}

__device__ bool bad_positions(const GeometrySide& side, int32_t buckets) {
  bool bad = false;
  for (int64_t i = 1 + threadIdx.x; side.positions != nullptr && i < side.count;
       i += kFaultThreads) {
    const bool starts_bucket = buckets > 0 && side.bucket_offsets[bucket_of(side, buckets, i)] == i;
    bad = bad || (!starts_bucket && side.positions[i] < side.positions[i - 1]);
  }
  return bad;
}

// A block a (sequence, query head).
__global__ void __launch_bounds__(kFaultThreads, 4)
    attention_fault_kernel(const __grid_constant__ FaultParams params) {
  const GeometrySource& source = params.source;
  const auto head = static_cast<int32_t>(blockIdx.x) % source.heads;
  const auto sequence = static_cast<int32_t>(blockIdx.x) / source.heads;
  const int32_t key_head = head / (source.heads / source.key_heads);
  const SequenceRows rows = resolve_rows(source, sequence);
  const HeadGeometry geometry = resolve_head(source, rows, sequence, head);
  bool bad = rows.faulty;
  if (params.page_table != nullptr) {
    const int32_t* pages = params.page_table + sequence * params.page_table_stride;
    const int32_t count = (rows.keys + params.page_size - 1) / params.page_size;
    for (auto p = static_cast<int32_t>(threadIdx.x); p < count; p += kFaultThreads) {
      bad = bad || pages[p] < 0 || pages[p] >= params.page_count;
    }
  }
  bad = bad || (source.query_count.data != nullptr &&
                *source.query_count.at(sequence, head) != geometry.outer.count);
  bad = bad || (source.key_count.data != nullptr &&
                *source.key_count.at(sequence, key_head) != geometry.inner.count);
  if (source.buckets > 0) {
    bad = bad || bad_offsets(geometry.outer.bucket_offsets, source.buckets, rows.query_rows);
    bad = bad || bad_offsets(geometry.inner.bucket_offsets, source.buckets, rows.key_rows);
  }
  bad = bad || bad_positions(geometry.outer, source.buckets);
  bad = bad || bad_positions(geometry.inner, source.buckets);
  const int32_t* index = source.output_index.at(sequence, head);
  for (auto i = static_cast<int32_t>(threadIdx.x); index != nullptr && i < geometry.outer.count;
       i += kFaultThreads) {
    const int32_t row = index[rows.query_first + i];
    bad = bad || row < -1 || row >= rows.query_rows;
  }
  if (source.block_rows > 0) {
    const int64_t block_rows = (source.max_query + source.block_rows - 1) / source.block_rows;
    const int64_t block_columns = (source.max_key + source.block_keys - 1) / source.block_keys;
    bad = bad || bad_blocks(geometry.blocks, block_rows, block_columns, params.partial_count);
    bad = bad ||
          bad_blocks(geometry.transposed_blocks, block_columns, block_rows, params.partial_count);
  }
  if (bad) {
    *params.status = 1;
  }
}

}  // namespace

void attention_report_faults(const AttentionInputs& inputs, const AttentionOptions& options,
                             Stream stream) {
  FaultParams params;
  params.source = geometry_source(inputs, options);
  params.status = static_cast<int32_t*>(options.execution.status.data);
  const int64_t blocks = int64_t{params.source.sequences} * params.source.heads;
  if (params.status == nullptr || blocks == 0) {
    return;
  }
  if (options.sequences.page_table) {
    params.page_table = static_cast<const int32_t*>(options.sequences.page_table.data);
    params.page_table_stride = options.sequences.page_table.stride(0);
    params.page_size = static_cast<int32_t>(options.sequences.page_size);
    params.page_count = static_cast<int32_t>(inputs.k.dim(0));
  }
  params.partial_count = options.blocks.bits ? static_cast<int32_t>(options.blocks.bits.dim(0)) : 0;
  launch(&attention_fault_kernel, dim3(static_cast<unsigned>(blocks)), kFaultThreads, 0, params,
         stream, "attention_fault_kernel");
}

int32_t attention_status(const TensorView& status, Stream stream) {
  auto* queue = static_cast<cudaStream_t>(stream.handle);
  int32_t value = 0;
  cuda::check(cudaMemcpyAsync(&value, status.data, sizeof(value), cudaMemcpyDeviceToHost, queue),
              "cudaMemcpyAsync");
  cuda::check(cudaStreamSynchronize(queue), "cudaStreamSynchronize");
  return value;
}

}  // namespace flashloom::portable
