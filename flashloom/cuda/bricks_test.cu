#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <functional>
#include <type_traits>
#include <vector>

#include "flashloom/cuda/error.cuh"
#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/cp_async.cuh"
#include "flashloom/cuda/ptx/ldmatrix.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/cuda/ptx/mma.cuh"
#include "flashloom/cuda/ptx/stmatrix.cuh"
#include "flashloom/cuda/ptx/tma.cuh"
#include "flashloom/cuda/ptx/wgmma.cuh"
#include "flashloom/cuda/tensor_map.cuh"
#include "flashloom/cuda/tile/fragment.cuh"
#include "flashloom/cuda/tile/shared_layout.h"

// Each brick on the GPU against the CPU. Operands are small integers, so that products and sums are
// exact and a misplaced element shows as a wrong number.

namespace flashloom::cuda {
namespace {

#define FLASHLOOM_NEEDS_HOPPER()                                                        \
  int flashloom_major = 0;                                                              \
  if (cudaDeviceGetAttribute(&flashloom_major, cudaDevAttrComputeCapabilityMajor, 0) != \
          cudaSuccess ||                                                                \
      flashloom_major != 9) {                                                           \
    GTEST_SKIP() << "no Hopper GPU on this host";                                       \
  }                                                                                     \
  static_assert(true)

template <class T>
class Buffer {
 public:
  explicit Buffer(const std::vector<T>& values) : count_(values.size()) {
    check(cudaMalloc(&data_, count_ * sizeof(T)), "cudaMalloc");
    check(cudaMemcpy(data_, values.data(), count_ * sizeof(T), cudaMemcpyHostToDevice), "copy");
  }

  ~Buffer() { cudaFree(data_); }

  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() const { return data_; }

  std::vector<T> read() const {
    check(cudaDeviceSynchronize(), "kernel");
    std::vector<T> values(count_);
    check(cudaMemcpy(values.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost), "copy");
    return values;
  }

 private:
  T* data_ = nullptr;
  size_t count_;
};

// Integers in [-8, 8], different for neighbours.
template <class T>
std::vector<T> integers(size_t count, uint32_t seed) {
  std::vector<T> values(count);
  for (size_t i = 0; i < count; ++i) {
    const auto mixed = static_cast<uint32_t>(i) * 2654435761u + seed * 40503u;
    values[i] = static_cast<T>(static_cast<float>(static_cast<int>(mixed >> 16) % 17 - 8));
  }
  return values;
}

constexpr int kRows = 64;     // of A: one warpgroup
constexpr int kReduced = 64;  // four steps

template <class T>
__device__ void store_swizzled(unsigned char* tile, const T* source, int rows, int columns) {
  for (int i = static_cast<int>(threadIdx.x); i < rows * columns;
       i += static_cast<int>(blockDim.x)) {
    *reinterpret_cast<T*>(tile + swizzled_offset(i / columns, i % columns, rows)) = source[i];
  }
}

// a: (64, 64) if its reduced dimension runs along rows, else transposed; b: (N, 64) or (64, N).
template <class T, int kN, Major kMajorA, Major kMajorB, bool kFromRegisters>
__global__ void wgmma_kernel(const T* a, const T* b, float* c) {
  extern __shared__ __align__(1024) unsigned char memory[];
  unsigned char* tile_a = memory;
  unsigned char* tile_b = memory + kRows * kReduced * 2;
  const bool b_reduced = kMajorB == Major::kReduced;
  store_swizzled(tile_a, a, 64, 64);
  store_swizzled(tile_b, b, b_reduced ? kN : kReduced, b_reduced ? kReduced : kN);
  fence_async_shared();
  __syncthreads();
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t row = threadIdx.x / 32 * 16 + lane / 4;
  const uint32_t address_a = shared_address(tile_a);
  const uint32_t address_b = shared_address(tile_b);
  float d[kN / 2];
  for (float& value : d) {
    value = 1e9f;  // must be overwritten by the first step
  }
  uint32_t words[4][4];
  for (int step = 0; step < 4; ++step) {
    for (int i = 0; i < 4; ++i) {
      const uint32_t r = row + i % 2 * 8;
      const uint32_t column = 16 * step + i / 2 * 8 + lane % 4 * 2;
      words[step][i] = *reinterpret_cast<const uint32_t*>(a + r * kReduced + column);
    }
  }
  wgmma_hold(d);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const uint64_t desc_b = b_reduced
                                ? k_major_descriptor(address_b + k_major_step(step, kN))
                                : mn_major_descriptor(address_b + mn_major_step(step), kReduced);
    if constexpr (kFromRegisters) {
      Wgmma<T, kN>::template from_registers<kMajorB>(
          d, words[step][0], words[step][1], words[step][2], words[step][3], desc_b, step > 0);
    } else {
      const uint64_t desc_a = kMajorA == Major::kReduced
                                  ? k_major_descriptor(address_a + k_major_step(step, kRows))
                                  : mn_major_descriptor(address_a + mn_major_step(step), kReduced);
      Wgmma<T, kN>::template from_shared<kMajorA, kMajorB>(d, desc_a, desc_b, step > 0);
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_hold(d);
  for (int i = 0; i < kN / 2; ++i) {
    const uint32_t r = row + i / 2 % 2 * 8;
    const uint32_t column = i / 4 * 8 + lane % 4 * 2 + i % 2;
    c[r * kN + column] = d[i];
  }
}

template <class T, int kN, Major kMajorA, Major kMajorB, bool kFromRegisters = false>
void check_wgmma() {
  const std::vector<T> a = integers<T>(kRows * kReduced, 1);
  const std::vector<T> b = integers<T>(kN * kReduced, 2);
  const Buffer<T> device_a(a);
  const Buffer<T> device_b(b);
  const Buffer<float> c(std::vector<float>(kRows * kN, -1));
  auto* kernel = &wgmma_kernel<T, kN, kMajorA, kMajorB, kFromRegisters>;
  const int bytes = kRows * kReduced * 2 + (kN + 63) / 64 * 64 * kReduced * 2;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), "set");
  kernel<<<1, 128, static_cast<size_t>(bytes)>>>(device_a.data(), device_b.data(), c.data());
  const std::vector<float> ours = c.read();
  int wrong = 0;
  for (int m = 0; m < kRows; ++m) {
    for (int n = 0; n < kN; ++n) {
      float sum = 0;
      for (int k = 0; k < kReduced; ++k) {
        const T x =
            a[static_cast<size_t>(kMajorA == Major::kReduced ? m * kReduced + k : k * kRows + m)];
        const T y =
            b[static_cast<size_t>(kMajorB == Major::kReduced ? n * kReduced + k : k * kN + n)];
        sum += static_cast<float>(x) * static_cast<float>(y);
      }
      wrong += ours[static_cast<size_t>(m * kN + n)] != sum ? 1 : 0;
    }
  }
  EXPECT_EQ(wrong, 0) << "N " << kN << ", majors " << static_cast<int>(kMajorA) << ", "
                      << static_cast<int>(kMajorB) << (kFromRegisters ? ", A in registers" : "");
}

template <class T, int kN>
void check_wgmma_majors() {
  check_wgmma<T, kN, Major::kReduced, Major::kReduced>();
  check_wgmma<T, kN, Major::kReduced, Major::kReduced, true>();
  check_wgmma<T, kN, Major::kReduced, Major::kOther>();
  check_wgmma<T, kN, Major::kReduced, Major::kOther, true>();
  check_wgmma<T, kN, Major::kOther, Major::kReduced>();
  check_wgmma<T, kN, Major::kOther, Major::kOther>();
}

TEST(Bricks, WgmmaMultipliesInAllShapesAndMajors) {
  FLASHLOOM_NEEDS_HOPPER();
  check_wgmma_majors<__nv_bfloat16, 64>();
  check_wgmma_majors<__nv_bfloat16, 80>();
  check_wgmma_majors<__nv_bfloat16, 96>();
  check_wgmma_majors<__nv_bfloat16, 128>();
  check_wgmma_majors<__nv_bfloat16, 176>();
  check_wgmma_majors<__nv_bfloat16, 192>();
  check_wgmma_majors<__half, 64>();
  check_wgmma_majors<__half, 128>();
}

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
  const uint32_t address = shared_address(tile) + swizzled_offset(lane % 16, 8 * (lane / 16), 16);
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
