#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "flashloom/cuda/bricks_test.cuh"
#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/ldmatrix.cuh"
#include "flashloom/cuda/ptx/mma.cuh"
#include "flashloom/cuda/ptx/movmatrix.cuh"
#include "flashloom/cuda/ptx/stmatrix.cuh"
#include "flashloom/cuda/tile/fragment.cuh"
#include "flashloom/cuda/tile/fragment_layout.h"
#include "flashloom/cuda/tile/shared_layout.h"

// Bricks that keep order among warps, and those that move numbers between registers and shared
// memory.

namespace flashloom::cuda {
namespace {

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
                                    uint16_t* transposed, uint16_t* turned) {
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
  const uint4 chunk =
      load_shared_16(shared_address(tile) + swizzled_offset(lane / 2, lane % 2 * 8, 16));
  reinterpret_cast<uint4*>(stored)[lane] = chunk;
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
  __syncwarp();
  // The matrix beside the first becomes that below it.
  stmatrix_x4_transposed(address, pair(g, t), pair(g, t + 8), pair(g + 8, t), pair(g + 8, t + 8));
  __syncwarp();
  reinterpret_cast<uint4*>(turned)[lane] =
      load_shared_16(shared_address(tile) + swizzled_offset(lane / 2, lane % 2 * 8, 16));
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
  const Buffer<uint16_t> turned(std::vector<uint16_t>(256, 0));
  matrix_moves_kernel<<<1, 32>>>(in.data(), stored.data(), loaded.data(), transposed.data(),
                                 turned.data());
  EXPECT_EQ(stored.read(), values);
  EXPECT_EQ(loaded.read(), values);
  EXPECT_EQ(transposed.read(), values);
  std::vector<uint16_t> expected(256);
  for (size_t i = 0; i < 256; ++i) {
    expected[i % 16 * 16 + i / 16] = values[i];
  }
  EXPECT_EQ(turned.read(), expected);
}

// A matrix in the registers of a warp.
__global__ void transpose_kernel(const uint32_t* in, uint32_t* out) {
  out[threadIdx.x] = transpose_8x8(in[threadIdx.x]);
}

TEST(Bricks, MatricesTransposeInRegisters) {
  FLASHLOOM_NEEDS_HOPPER();
  // Element (row, column) is 8 row + column; two of a row in a word.
  std::vector<uint32_t> words;
  for (uint32_t i = 0; i < 64; i += 2) {
    words.push_back(i | (i + 1) << 16);
  }
  const Buffer<uint32_t> in(words);
  const Buffer<uint32_t> out(std::vector<uint32_t>(32, 0));
  transpose_kernel<<<1, 32>>>(in.data(), out.data());
  const std::vector<uint32_t> found = out.read();
  for (uint32_t i = 0; i < 32; ++i) {
    const uint32_t row = i / 4, column = i % 4 * 2;
    EXPECT_EQ(found[i], (8 * column + row) | (8 * (column + 1) + row) << 16);
  }
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
