#include <cuda_runtime.h>

#include <string>

#include "flashloom/core/error.h"
#include "flashloom/cuda/error.cuh"
#include "flashloom/cuda/tensor_map.cuh"

namespace flashloom::cuda {
namespace {

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

EncodeTiled encode_tiled() {
  // Through the run time, so that nothing links against the driver.
  static const EncodeTiled kFunction = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result;
    check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                           cudaEnableDefault, &result),
          "cudaGetDriverEntryPointByVersion");
    if (result != cudaDriverEntryPointSuccess || function == nullptr) {
      throw Unsupported("tensor map", "a driver without cuTensorMapEncodeTiled");
    }
    return reinterpret_cast<EncodeTiled>(function);
  }();
  return kFunction;
}

}  // namespace

CUtensorMap make_tile_map(const ConstTensorView& tensor, uint32_t box_rows, uint32_t columns) {
  if (tensor.rank != 4 || dtype_bytes(tensor.dtype) != 2 || tensor.strides[3] != 1 ||
      tensor.size() == 0) {
    throw InvalidArgument("tensor map", "tensor", "a non-empty rank 4 tensor of 16-bit elements",
                          "rank " + std::to_string(tensor.rank));
  }
  cuuint64_t sizes[4];
  cuuint64_t strides[3];
  for (int i = 0; i < 4; ++i) {
    sizes[i] = static_cast<cuuint64_t>(tensor.shape[3 - i]);
  }
  for (int i = 0; i < 3; ++i) {
    // The stride of a dimension of size 1 is never used, but it is checked.
    const int64_t stride = tensor.shape[2 - i] == 1 ? tensor.shape[3] : tensor.strides[2 - i];
    strides[i] = static_cast<cuuint64_t>(stride) * 2;
  }
  if (reinterpret_cast<uintptr_t>(tensor.data) % 16 != 0 || strides[0] % 16 != 0 ||
      strides[1] % 16 != 0 || strides[2] % 16 != 0) {
    throw InvalidArgument(
        "tensor map", "tensor", "16-byte aligned data, strides that are multiples of 16 bytes",
        "strides " + std::to_string(tensor.strides[0]) + ", " + std::to_string(tensor.strides[1]) +
            ", " + std::to_string(tensor.strides[2]));
  }
  if (columns != 64 && columns != 32) {
    throw InvalidArgument("tensor map", "columns", "64 or 32", std::to_string(columns));
  }
  const cuuint32_t box[4] = {columns, box_rows, 1, 1};
  const cuuint32_t step[4] = {1, 1, 1, 1};
  CUtensorMap map;
  const CUresult result = encode_tiled()(
      &map,
      tensor.dtype == DType::bf16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                  : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
      4, const_cast<void*>(tensor.data), sizes, strides, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE,
      columns == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw CudaError("cuTensorMapEncodeTiled: error " + std::to_string(result));
  }
  return map;
}

}  // namespace flashloom::cuda
