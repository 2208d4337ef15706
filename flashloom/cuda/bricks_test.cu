#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "flashloom/cuda/bricks_test.cuh"
#include "flashloom/cuda/error.cuh"
#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/cp_async.cuh"
#include "flashloom/cuda/ptx/ldmatrix.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/cuda/ptx/mma.cuh"
#include "flashloom/cuda/ptx/stmatrix.cuh"
#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/cuda/tensor_map.cuh"
#include "flashloom/cuda/tile/fragment.cuh"
#include "flashloom/cuda/tile/fragment_layout.h"
#include "flashloom/cuda/tile/shared_layout.h"

// Bricks that move numbers and keep order.

namespace flashloom::cuda {
namespace {

constexpr int kBoxRows = 48;
constexpr int kBoxes = 5;

// Loads boxes one after the other through a ring of two buffers: thread 0 waits for "empty" with
// parity 1 first and for "full" like all others, which exercises both parities of both barriers.
__global__ void tma_kernel(const __grid_constant__ CUtensorMap map, const int* coordinates,
                           uint16_t* out) {
  extern __shared__ __align__(1024) unsigned char memory[];
  __shared__ uint64_t full[2];
  __shared__ uint64_t empty[2];
  constexpr uint32_t kBytes = kBoxRows * kPanelRowBytes;
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
      for (int i = static_cast<int>(threadIdx.x) - 1; i < kBoxRows * 64;
           i += static_cast<int>(blockDim.x) - 1) {
        out[box * kBoxRows * 64 + i] = *reinterpret_cast<uint16_t*>(
            memory + place.stage * kBytes + swizzled_offset(i / 64, i % 64, kBoxRows));
      }
      mbarrier_arrive(&empty[place.stage]);
      place.advance();
    }
  }
}

TEST(Bricks, TmaLoadsBoxesAndFillsTheOutsideWithZeros) {
  FLASHLOOM_NEEDS_HOPPER();
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
  const Buffer<uint16_t> out(std::vector<uint16_t>(kBoxes * kBoxRows * 64, 0xffff));
  const TensorView view(static_cast<void*>(source.data()), DType::bf16,
                        {kShape[0], kShape[1], kShape[2], kShape[3]}, {Device::Kind::cuda, 0});
  const CUtensorMap map = make_tile_map(view, kBoxRows);
  constexpr int kBytes = 2 * kBoxRows * static_cast<int>(kPanelRowBytes);
  tma_kernel<<<1, 64, kBytes>>>(map, coordinates.data(), out.data());
  const std::vector<uint16_t> ours = out.read();
  for (int box = 0; box < kBoxes; ++box) {
    const int* c = &places[static_cast<size_t>(4 * box)];
    int wrong = 0;
    for (int i = 0; i < kBoxRows * 64; ++i) {
      const int64_t row = c[1] + i / 64;
      const bool inside = row >= 0 && row < kShape[2];
      const uint16_t expected =
          inside
              ? values[static_cast<size_t>(((c[3] * 3 + c[2]) * 100 + row) * 128 + c[0] + i % 64)]
              : uint16_t{0};
      wrong += ours[static_cast<size_t>(box * kBoxRows * 64 + i)] != expected ? 1 : 0;
    }
    EXPECT_EQ(wrong, 0) << "box " << box;
  }
}

// Half the warps write and arrive, the others wait and read, many times over two barriers.
__global__ void named_barrier_kernel(int* wrong) {
  __shared__ int numbers[64];
  for (int round = 0; round < 100; ++round) {
    if (threadIdx.x < 64) {
      numbers[threadIdx.x] = round * 64 + static_cast<int>(threadIdx.x);
      named_barrier_arrive(1, 128);
      named_barrier_sync(2, 128);
    } else {
      named_barrier_sync(1, 128);
      const int at = 127 - static_cast<int>(threadIdx.x);
      if (numbers[at] != round * 64 + at) {
        atomicAdd(wrong, 1);
      }
      named_barrier_arrive(2, 128);
    }
  }
}

TEST(Bricks, NamedBarriersOrderWritersAndReaders) {
  FLASHLOOM_NEEDS_HOPPER();
  const Buffer<int> wrong(std::vector<int>(1, 0));
  named_barrier_kernel<<<1, 128>>>(wrong.data());
  EXPECT_EQ(wrong.read()[0], 0);
}

// Two teams that meet at barriers of their own a different number of times, then all at one.
__global__ void teams_kernel(int* wrong) {
  __shared__ int numbers[256];
  const uint32_t team = threadIdx.x / 128;
  for (int round = 0; round < 20; ++round) {
    for (uint32_t i = 0; i < 1 + 2 * team; ++i) {
      numbers[threadIdx.x] = round + static_cast<int>(i + threadIdx.x);
      named_barrier_sync(1 + team, 128);
      const uint32_t other = threadIdx.x ^ 127;
      if (numbers[other] != round + static_cast<int>(i + other)) {
        atomicAdd(wrong, 1);
      }
      named_barrier_sync(1 + team, 128);
    }
    __syncthreads();
    const uint32_t other = threadIdx.x ^ 255;
    if (numbers[other] != round + static_cast<int>(2 * (other / 128) + other)) {
      atomicAdd(wrong, 1);
    }
    __syncthreads();
  }
}

TEST(Bricks, TeamsMeetAsOftenAsTheyLike) {
  FLASHLOOM_NEEDS_HOPPER();
  const Buffer<int> wrong(std::vector<int>(1, 0));
  teams_kernel<<<1, 256>>>(wrong.data());
  EXPECT_EQ(wrong.read()[0], 0);
}

// A 16 x 16 tile from fragments to shared memory with stmatrix and back with ldmatrix, straight and
// transposed.
__global__ void matrix_moves_kernel(const uint16_t* in, uint16_t* stored, uint16_t* loaded,
                                    uint16_t* transposed) {
  __shared__ __align__(1024) unsigned char tile[16 * kPanelRowBytes];
  const uint32_t lane = threadIdx.x;
  const auto pair = [&](uint32_t row, uint32_t column) {
    return static_cast<uint32_t>(in[row * 16 + column]) |
           static_cast<uint32_t>(in[row * 16 + column + 1]) << 16;
  };
  const uint32_t g = lane / 4;
  const uint32_t t = lane % 4 * 2;
  const TilePlace own = matrix_row_place(lane);
  const uint32_t address = shared_address(tile) + swizzled_offset(own.row, own.column, 16);
  stmatrix_x4(address, pair(g, t), pair(g + 8, t), pair(g, t + 8), pair(g + 8, t + 8));
  __syncwarp();
  for (uint32_t i = lane; i < 256; i += 32) {
    stored[i] = *reinterpret_cast<uint16_t*>(tile + swizzled_offset(i / 16, i % 16, 16));
  }
  uint32_t words[4];
  ldmatrix_x4(words, address);
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t at = (g + i % 2 * 8) * 16 + t + i / 2 * 8;
    loaded[at] = static_cast<uint16_t>(words[i]);
    loaded[at + 1] = static_cast<uint16_t>(words[i] >> 16);
  }
  ldmatrix_x4_transposed(words, address);
  for (uint32_t i = 0; i < 4; ++i) {
    // Element l / 4 of rows 2 (l % 4) and the next of each matrix.
    const uint32_t row = t + i % 2 * 8;
    const uint32_t column = g + i / 2 * 8;
    transposed[row * 16 + column] = static_cast<uint16_t>(words[i]);
    transposed[(row + 1) * 16 + column] = static_cast<uint16_t>(words[i] >> 16);
  }
}

TEST(Bricks, MatrixMovesKeepEveryElement) {
  FLASHLOOM_NEEDS_HOPPER();
  std::vector<uint16_t> values(256);
  for (size_t i = 0; i < 256; ++i) {
    values[i] = static_cast<uint16_t>(i * 31 + 5);
  }
  const Buffer<uint16_t> in(values);
  const Buffer<uint16_t> stored(std::vector<uint16_t>(256, 0));
  const Buffer<uint16_t> loaded(std::vector<uint16_t>(256, 0));
  const Buffer<uint16_t> transposed(std::vector<uint16_t>(256, 0));
  matrix_moves_kernel<<<1, 32>>>(in.data(), stored.data(), loaded.data(), transposed.data());
  EXPECT_EQ(stored.read(), values);
  EXPECT_EQ(loaded.read(), values);
  EXPECT_EQ(transposed.read(), values);
}

template <class T>
__global__ void mma_kernel(const T* a, const T* b, float* c) {
  const uint32_t g = threadIdx.x / 4;
  const uint32_t t = threadIdx.x % 4 * 2;
  const auto word = [](const T* row) { return *reinterpret_cast<const uint32_t*>(row); };
  const uint32_t left[4] = {word(a + g * 16 + t), word(a + (g + 8) * 16 + t),
                            word(a + g * 16 + t + 8), word(a + (g + 8) * 16 + t + 8)};
  float sums[4] = {100, 100, 100, 100};
  mma_16x8x16<T>(sums, left, word(b + g * 16 + t), word(b + g * 16 + t + 8));
  for (uint32_t i = 0; i < 4; ++i) {
    c[(g + i / 2 * 8) * 8 + t + i % 2] = sums[i];
  }
}

template <class T>
void check_mma() {
  const std::vector<T> a = integers<T>(256, 3);  // (16, 16)
  const std::vector<T> b = integers<T>(128, 4);  // (8, 16): columns of b
  const Buffer<T> device_a(a);
  const Buffer<T> device_b(b);
  const Buffer<float> c(std::vector<float>(128, 0));
  mma_kernel<T><<<1, 32>>>(device_a.data(), device_b.data(), c.data());
  const std::vector<float> ours = c.read();
  for (size_t m = 0; m < 16; ++m) {
    for (size_t n = 0; n < 8; ++n) {
      float sum = 100;
      for (size_t k = 0; k < 16; ++k) {
        sum += static_cast<float>(a[m * 16 + k]) * static_cast<float>(b[n * 16 + k]);
      }
      ASSERT_EQ(ours[m * 8 + n], sum) << m << ", " << n;
    }
  }
}

TEST(Bricks, MmaAddsItsProduct) {
  FLASHLOOM_NEEDS_HOPPER();
  check_mma<__nv_bfloat16>();
  check_mma<__half>();
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
    tma_store_4d(&map, shared_address(memory), c[0], c[1], c[2], c[3]);
    bulk_commit();
    bulk_wait_read<0>();  // the shared memory is free from here on, the box is not there yet
    bulk_wait<0>();
  }
}

TEST(Bricks, TmaStoresBoxesAndLeavesTheOutsideAlone) {
  FLASHLOOM_NEEDS_HOPPER();
  constexpr uint16_t kOld = 0xabcd;
  const Buffer<uint16_t> target(std::vector<uint16_t>(2 * 3 * 100 * 128, kOld));
  const std::vector<int> places = {64, 10, 1, 1, 0, 80, 2, 0, 0, 200, 0, 1};
  const Buffer<int> coordinates(places);
  const TensorView view(static_cast<void*>(target.data()), DType::bf16, {2, 3, 100, 128},
                        {Device::Kind::cuda, 0});
  const CUtensorMap map = make_tile_map(view, kBoxRows);
  tma_store_kernel<<<3, 64, kBoxRows * kPanelRowBytes>>>(map, coordinates.data());
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
  EXPECT_EQ(target.read(), expected);
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

// A warpgroup lowers its limit, which gives the other one the registers to raise its own; numbers
// that need them all must survive.
__global__ void __launch_bounds__(256, 1) register_limit_kernel(const float* in, float* out) {
  if (threadIdx.x < 128) {
    register_limit_lower<40>();
    out[threadIdx.x] = in[threadIdx.x];
  } else {
    register_limit_raise<232>();
    float numbers[160];
#pragma unroll
    for (int i = 0; i < 160; ++i) {
      numbers[i] = in[(threadIdx.x + 37 * i) % 256];
    }
#pragma unroll
    for (int round = 0; round < 3; ++round) {
#pragma unroll
      for (int i = 0; i < 160; ++i) {
        numbers[i] = fmaf(numbers[(i + 1) % 160], 3, numbers[i]);
      }
    }
    float sum = 0;
#pragma unroll
    for (int i = 0; i < 160; ++i) {
      sum += numbers[i];
    }
    out[threadIdx.x] = sum;
  }
}

TEST(Bricks, RegisterLimitsMove) {
  FLASHLOOM_NEEDS_HOPPER();
  std::vector<float> values(256);
  for (size_t i = 0; i < 256; ++i) {
    values[i] = static_cast<float>(i * 7 % 11);
  }
  const Buffer<float> in(values);
  const Buffer<float> out(std::vector<float>(256, -1));
  register_limit_kernel<<<1, 256>>>(in.data(), out.data());
  std::vector<float> expected = values;
  for (size_t thread = 128; thread < 256; ++thread) {
    std::vector<float> numbers(160);
    for (size_t i = 0; i < 160; ++i) {
      numbers[i] = values[(thread + 37 * i) % 256];
    }
    for (int round = 0; round < 3; ++round) {
      for (size_t i = 0; i < 160; ++i) {
        numbers[i] += 3 * numbers[(i + 1) % 160];
      }
    }
    expected[thread] = 0;
    for (const float number : numbers) {
      expected[thread] += number;
    }
  }
  EXPECT_EQ(out.read(), expected);  // integers below 2^24, so exact
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
  FLASHLOOM_NEEDS_HOPPER();  // what follows asks the driver
  EXPECT_NO_THROW(make_tile_map(view(DType::bf16, 128), 64));
}

// Each block adds its numbers to the same places, once in bulk and once from registers.
__global__ void reduce_kernel(float* bulk, float* vector) {
  __shared__ __align__(16) float numbers[256];
  for (int i = 0; i < 8; ++i) {
    numbers[32 * i + threadIdx.x] = static_cast<float>(32 * i + threadIdx.x + blockIdx.x);
  }
  fence_async_shared();
  __syncthreads();
  if (threadIdx.x == 0) {
    bulk_reduce_add_f32(bulk, numbers, sizeof(numbers));
    bulk_commit();
    bulk_wait<0>();
  }
  for (int i = 0; i < 2; ++i) {
    const float* four = numbers + 128 * i + 4 * threadIdx.x;
    reduce_add_f32x4(vector + 128 * i + 4 * threadIdx.x, four[0], four[1], four[2], four[3]);
  }
}

TEST(Bricks, ReductionsAddInMemory) {
  FLASHLOOM_NEEDS_HOPPER();
  const Buffer<float> bulk(std::vector<float>(256, 1000));
  const Buffer<float> vector(std::vector<float>(256, 1000));
  reduce_kernel<<<20, 32>>>(bulk.data(), vector.data());
  std::vector<float> expected(256);
  for (size_t i = 0; i < 256; ++i) {
    expected[i] = 1000 + 20 * static_cast<float>(i) + 190;
  }
  EXPECT_EQ(bulk.read(), expected);
  EXPECT_EQ(vector.read(), expected);
}

__global__ void fragment_kernel(uint32_t* transposed, float* powers, uint32_t* packed) {
  const uint32_t lane = threadIdx.x;
  uint32_t words[4] = {lane * 4, lane * 4 + 1, lane * 4 + 2, lane * 4 + 3};
  quad_transpose(words, lane);
  for (int i = 0; i < 4; ++i) {
    transposed[lane * 4 + i] = words[i];
  }
  powers[lane] = exp2_fast(static_cast<float>(lane) - 20);
  if (lane == 31) {
    powers[lane] = exp2_fast(__int_as_float(0xff800000));
  }
  // Halfway cases go to even: 1 + 2^-8 and 1 + 3 * 2^-8 in bf16, 2^-11 for f16.
  packed[2 * lane] = pack2<__nv_bfloat16>(1 + 0x1p-8f, 1 + 0x1.8p-7f);
  packed[2 * lane + 1] = pack2<__half>(1 + 0x1p-11f, 1 + 0x1.8p-10f);
  float low;
  float high;
  unpack2<__half>(packed[2 * lane + 1], low, high);
  if (low != 1 || high != 1 + 0x1p-9f) {
    packed[2 * lane + 1] = 0;
  }
}

TEST(Bricks, FragmentsTransposeAndRound) {
  FLASHLOOM_NEEDS_HOPPER();
  const Buffer<uint32_t> transposed(std::vector<uint32_t>(128, 0));
  const Buffer<float> powers(std::vector<float>(32, 0));
  const Buffer<uint32_t> packed(std::vector<uint32_t>(64, 0));
  fragment_kernel<<<1, 32>>>(transposed.data(), powers.data(), packed.data());
  const std::vector<uint32_t> words = transposed.read();
  for (uint32_t lane = 0; lane < 32; ++lane) {
    for (uint32_t i = 0; i < 4; ++i) {
      // Word i of lane q of the quad became word q of lane i.
      ASSERT_EQ(words[lane * 4 + i], (lane / 4 * 4 + i) * 4 + lane % 4);
    }
    ASSERT_EQ(powers.read()[lane], lane == 31 ? 0 : std::exp2(static_cast<float>(lane) - 20));
    ASSERT_EQ(packed.read()[2 * lane], 0x3f823f80u);
    ASSERT_EQ(packed.read()[2 * lane + 1], 0x3c023c00u);
  }
}

}  // namespace
}  // namespace flashloom::cuda
