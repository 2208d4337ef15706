#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <vector>

#include "flashloom/cuda/bricks_test.cuh"
#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/cp_async.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/cuda/tensor_map.cuh"
#include "flashloom/cuda/tile/panel_layout.h"
#include "flashloom/cuda/tile/shared_layout.h"

// Bricks that copy between global and shared memory, and the barriers that count their bytes.

namespace flashloom::cuda {
namespace {

constexpr int kBoxRows = 48;
constexpr int kBoxes = 5;

// Loads boxes one after the other through a ring of two buffers: thread 0 waits for "empty" with
// parity 1 first and for "full" like all others, which exercises both parities of both barriers.
template <class Panels>
__global__ void tma_kernel(const __grid_constant__ CUtensorMap map, const int* coordinates,
                           uint16_t* out) {
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ uint64_t full[2];
  __shared__ uint64_t empty[2];
  constexpr uint32_t kBytes = Panels::bytes(kBoxRows);
  constexpr int kColumns = Panels::kColumns;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      mbarrier_init(&full[i], 1);
      mbarrier_init(&empty[i], blockDim.x);
    }
    mbarrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    PipelineState<2> place;
    for (int box = 0; box < kBoxes; ++box) {
      // The consumers below run in the other warps.
      mbarrier_wait(&empty[place.stage], place.parity ^ 1);
      mbarrier_arrive_expect(&full[place.stage], kBytes);
      const int* c = coordinates + 4 * box;
      tma_load_4d(memory + place.stage * kBytes, &map, &full[place.stage], c[0], c[1], c[2], c[3]);
      mbarrier_arrive(&empty[place.stage]);  // its own share: it reads nothing
      place.advance();
    }
  } else {
    PipelineState<2> place;
    for (int box = 0; box < kBoxes; ++box) {
      mbarrier_wait(&full[place.stage], place.parity);
      for (int i = static_cast<int>(threadIdx.x) - 1; i < kBoxRows * kColumns;
           i += static_cast<int>(blockDim.x) - 1) {
        out[box * kBoxRows * kColumns + i] = *reinterpret_cast<uint16_t*>(
            memory + place.stage * kBytes + Panels::offset(i / kColumns, i % kColumns, kBoxRows));
      }
      mbarrier_arrive(&empty[place.stage]);
      place.advance();
    }
  }
}

template <class Panels>
void check_loads() {
  constexpr int kColumns = Panels::kColumns;
  constexpr int64_t kShape[4] = {2, 3, 100, 128};
  std::vector<uint16_t> values(2 * 3 * 100 * 128);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<uint16_t>(i * 7 + 1);
  }
  const Buffer<uint16_t> source(values);
  // Column, row, d1, d0: inside, over the last row, before the first row, far outside, inside.
  const std::vector<int> places = {64, 10, 1, 1,   0, 80, 2, 0,  64, -5,
                                   0,  1,  0, 200, 0, 0,  0, 52, 2,  1};
  const Buffer<int> coordinates(places);
  const Buffer<uint16_t> out(std::vector<uint16_t>(kBoxes * kBoxRows * kColumns, 0xffff));
  const TensorView view(static_cast<void*>(source.data()), DType::bf16,
                        {kShape[0], kShape[1], kShape[2], kShape[3]}, {Device::Kind::cuda, 0});
  const CUtensorMap map = make_tile_map(view, kBoxRows, kColumns);
  tma_kernel<Panels><<<1, 64, 2 * Panels::bytes(kBoxRows)>>>(map, coordinates.data(), out.data());
  const std::vector<uint16_t> ours = out.read();
  for (int box = 0; box < kBoxes; ++box) {
    const int* c = &places[static_cast<size_t>(4 * box)];
    int wrong = 0;
    for (int i = 0; i < kBoxRows * kColumns; ++i) {
      const int64_t row = c[1] + i / kColumns;
      const bool inside = row >= 0 && row < kShape[2];
      const uint16_t expected =
          inside ? values[static_cast<size_t>(((c[3] * 3 + c[2]) * 100 + row) * 128 + c[0] +
                                              i % kColumns)]
                 : uint16_t{0};
      wrong += ours[static_cast<size_t>(box * kBoxRows * kColumns + i)] != expected ? 1 : 0;
    }
    EXPECT_EQ(wrong, 0) << "box " << box << " of " << kColumns << " columns";
  }
}

TEST(Bricks, TmaLoadsBoxesAndFillsTheOutsideWithZeros) {
  FLASHLOOM_NEEDS_HOPPER();
  check_loads<PanelLayout<128>>();
  check_loads<PanelLayout<64>>();
}

__global__ void cp_async_kernel(const uint32_t* in, uint32_t* out) {
  __shared__ __align__(16) uint32_t tile[4 * 32];
  // Odd threads ask for nothing and get zeros.
  cp_async_16(shared_address(tile + 4 * threadIdx.x), in + 4 * threadIdx.x, threadIdx.x % 2 == 0);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  for (int i = 0; i < 4; ++i) {
    out[4 * threadIdx.x + i] = tile[4 * threadIdx.x + i];
  }
}

TEST(Bricks, AsynchronousCopiesFillWithZeros) {
  FLASHLOOM_NEEDS_HOPPER();
  std::vector<uint32_t> values(128);
  for (size_t i = 0; i < 128; ++i) {
    values[i] = static_cast<uint32_t>(i + 1);
  }
  const Buffer<uint32_t> in(values);
  const Buffer<uint32_t> out(std::vector<uint32_t>(128, 7));
  cp_async_kernel<<<1, 32>>>(in.data(), out.data());
  const std::vector<uint32_t> ours = out.read();
  for (size_t i = 0; i < 128; ++i) {
    ASSERT_EQ(ours[i], i / 4 % 2 == 0 ? values[i] : 0u) << i;
  }
}

// Boxes out of swizzled shared memory: the inverse of the load above, ends left out. Not before the
// tensor's start: there a store, unlike a load, is an illegal instruction (seen on an H100).
template <bool kHinted>
__global__ void tma_store_kernel(const __grid_constant__ CUtensorMap map, const int* coordinates) {
  extern __shared__ __align__(1024) unsigned char memory[];
  const int* c = coordinates + 4 * blockIdx.x;
  for (int i = static_cast<int>(threadIdx.x); i < kBoxRows * 64;
       i += static_cast<int>(blockDim.x)) {
    *reinterpret_cast<uint16_t*>(memory + swizzled_offset(i / 64, i % 64, kBoxRows)) =
        static_cast<uint16_t>(4000 * blockIdx.x + i + 1);
  }
  fence_async_shared();
  __syncthreads();
  if (threadIdx.x == 0) {
    if constexpr (kHinted) {
      tma_store_4d(&map, shared_address(memory), c[0], c[1], c[2], c[3], kEvictFirst);
    } else {
      tma_store_4d(&map, shared_address(memory), c[0], c[1], c[2], c[3]);
    }
    bulk_commit();
    bulk_wait_read<0>();  // the shared memory is free from here on, the box is not there yet
    bulk_wait<0>();
  }
}

TEST(Bricks, TmaStoresBoxesAndLeavesTheOutsideAlone) {
  FLASHLOOM_NEEDS_HOPPER();
  constexpr uint16_t kOld = 0xabcd;
  const std::vector<int> places = {64, 10, 1, 1, 0, 80, 2, 0, 0, 200, 0, 1};
  const Buffer<int> coordinates(places);
  std::vector<uint16_t> expected(2 * 3 * 100 * 128, kOld);
  for (int box = 0; box < 3; ++box) {
    const int* c = &places[static_cast<size_t>(4 * box)];
    for (int i = 0; i < kBoxRows * 64; ++i) {
      const int row = c[1] + i / 64;
      if (row < 100) {
        expected[static_cast<size_t>(((c[3] * 3 + c[2]) * 100 + row) * 128 + c[0] + i % 64)] =
            static_cast<uint16_t>(4000 * box + i + 1);
      }
    }
  }
  for (const bool hinted : {false, true}) {
    const Buffer<uint16_t> target(std::vector<uint16_t>(2 * 3 * 100 * 128, kOld));
    const TensorView view(static_cast<void*>(target.data()), DType::bf16, {2, 3, 100, 128},
                          {Device::Kind::cuda, 0});
    const CUtensorMap map = make_tile_map(view, kBoxRows);
    const auto kernel = hinted ? tma_store_kernel<true> : tma_store_kernel<false>;
    kernel<<<3, 64, kBoxRows * kPanelRowBytes>>>(map, coordinates.data());
    EXPECT_EQ(target.read(), expected) << (hinted ? "with a hint" : "without a hint");
  }
}

__global__ void bulk_load_kernel(const float* in, float* out, int* tests) {
  __shared__ __align__(16) float numbers[96];
  __shared__ uint64_t full;
  if (threadIdx.x == 0) {
    mbarrier_init(&full, 1);
    mbarrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x == 95) {  // the phase before a fresh barrier's first is complete
    tests[0] = mbarrier_test(&full, 0) ? 1 : 0;
    tests[1] = mbarrier_test(&full, 1) ? 1 : 0;
  }
  __syncthreads();
  if (elect_one() && threadIdx.x < 32) {  // one lane of one warp
    mbarrier_arrive_expect(&full, sizeof(numbers));
    bulk_load(numbers, in, 64 * 4, &full);
    bulk_load(numbers + 64, in + 64, 32 * 4, &full);
  }
  mbarrier_wait(&full, 0);
  out[threadIdx.x] = numbers[threadIdx.x];
  if (threadIdx.x == 95) {
    tests[2] = mbarrier_test(&full, 0) ? 1 : 0;
    tests[3] = mbarrier_test(&full, 1) ? 1 : 0;
  }
}

TEST(Bricks, BulkCopiesCountTheirBytes) {
  FLASHLOOM_NEEDS_HOPPER();
  std::vector<float> values(96);
  for (size_t i = 0; i < 96; ++i) {
    values[i] = static_cast<float>(i * i);
  }
  const Buffer<float> in(values);
  const Buffer<float> out(std::vector<float>(96, -1));
  const Buffer<int> tests(std::vector<int>(4, -1));
  bulk_load_kernel<<<1, 96>>>(in.data(), out.data(), tests.data());
  EXPECT_EQ(out.read(), values);
  EXPECT_EQ(tests.read(), (std::vector<int>{0, 1, 1, 0}));
}

TEST(Bricks, MapsRefuseWhatTheCopyEngineCannot) {
  const auto view = [](DType dtype, int64_t stride) {
    TensorView tensor(reinterpret_cast<void*>(0x1000), dtype, {2, 3, 100, 128},
                      {Device::Kind::cuda, 0});
    tensor.strides[2] = stride;
    return tensor;
  };
  EXPECT_THROW(make_tile_map(view(DType::f32, 128), 64), InvalidArgument);
  EXPECT_THROW(make_tile_map(view(DType::bf16, 128).select(0, 0), 64), InvalidArgument);
  EXPECT_THROW(make_tile_map(view(DType::bf16, 129), 64), InvalidArgument);
  EXPECT_THROW(make_tile_map(view(DType::bf16, 128), 64, 16), InvalidArgument);
  FLASHLOOM_NEEDS_HOPPER();  // what follows asks the driver
  EXPECT_NO_THROW(make_tile_map(view(DType::bf16, 128), 64));
}

// Each block adds its numbers to the same places and stores them at its own.
__global__ void bulk_kernel(float* sums, float* copies) {
  __shared__ __align__(16) float numbers[256];
  for (int i = 0; i < 8; ++i) {
    numbers[32 * i + threadIdx.x] = static_cast<float>(32 * i + threadIdx.x + blockIdx.x);
  }
  fence_async_shared();
  __syncthreads();
  if (threadIdx.x == 0) {
    bulk_reduce_add_f32(sums, numbers, sizeof(numbers));
    bulk_store(copies + 256 * blockIdx.x, numbers, sizeof(numbers));
    bulk_commit();
    bulk_wait<0>();
  }
}

// Each block stores numbers in memory in the ordinary way and has the copy engine add to them.
__global__ void stored_then_added_kernel(float* sums) {
  __shared__ __align__(16) float numbers[256];
  numbers[threadIdx.x] = static_cast<float>(threadIdx.x);
  float* own = sums + 256 * blockIdx.x;
  own[threadIdx.x] = static_cast<float>(1000 * (blockIdx.x + 1));
  fence_async_shared();
  fence_async_global();
  __syncthreads();
  if (threadIdx.x == 0) {
    bulk_reduce_add_f32(own, numbers, sizeof(numbers));
    bulk_commit();
    bulk_wait<0>();
  }
}

TEST(Bricks, BulkCopiesAddToWhatWasStoredBefore) {
  FLASHLOOM_NEEDS_HOPPER();
  constexpr size_t kBlocks = 500;
  const Buffer<float> sums(std::vector<float>(256 * kBlocks, -1));
  stored_then_added_kernel<<<kBlocks, 256>>>(sums.data());
  std::vector<float> expected(256 * kBlocks);
  for (size_t i = 0; i < expected.size(); ++i) {
    expected[i] = static_cast<float>(1000 * (i / 256 + 1) + i % 256);
  }
  EXPECT_EQ(sums.read(), expected);
}

TEST(Bricks, BulkCopiesAddAndStoreInMemory) {
  FLASHLOOM_NEEDS_HOPPER();
  constexpr size_t kBlocks = 20;
  const Buffer<float> sums(std::vector<float>(256, 1000));
  const Buffer<float> copies(std::vector<float>(kBlocks * 256, -1));
  bulk_kernel<<<kBlocks, 32>>>(sums.data(), copies.data());
  std::vector<float> expected(256);
  std::vector<float> stored(kBlocks * 256);
  for (size_t i = 0; i < 256; ++i) {
    expected[i] = 1000 + 20 * static_cast<float>(i) + 190;
    for (size_t block = 0; block < kBlocks; ++block) {
      stored[256 * block + i] = static_cast<float>(i + block);
    }
  }
  EXPECT_EQ(sums.read(), expected);
  EXPECT_EQ(copies.read(), stored);
}

}  // namespace
}  // namespace flashloom::cuda
