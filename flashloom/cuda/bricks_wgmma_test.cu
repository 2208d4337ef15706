#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <vector>

#include "flashloom/cuda/bricks_test.cuh"
#include "flashloom/cuda/error.cuh"
#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"
#include "flashloom/cuda/ptx/wgmma.cuh"
#include "flashloom/cuda/tile/fragment_layout.h"
#include "flashloom/cuda/tile/panel_layout.h"

// Products of a warpgroup, in every shape, from shared memory and registers, in both majors.

namespace flashloom::cuda {
namespace {

constexpr int kRows = 64;     // of A: one warpgroup
constexpr int kReduced = 64;  // four steps

template <class Panels, class T>
__device__ void store_swizzled(unsigned char* tile, const T* source, int rows, int columns) {
  for (int i = static_cast<int>(threadIdx.x); i < rows * columns;
       i += static_cast<int>(blockDim.x)) {
    *reinterpret_cast<T*>(tile + Panels::offset(i / columns, i % columns, rows)) = source[i];
  }
}

// a: (64, 64) if its reduced dimension runs along rows, else transposed; b: (N, 64) or (64, N).
template <class T, int kN, Major kMajorA, Major kMajorB, bool kFromRegisters, class PanelsA,
          class PanelsB>
__global__ void wgmma_kernel(const T* a, const T* b, float* c) {
  extern __shared__ __align__(1024) unsigned char memory[];
  unsigned char* tile_a = memory;
  unsigned char* tile_b = memory + kRows * kReduced * 2;
  const bool b_reduced = kMajorB == Major::kReduced;
  store_swizzled<PanelsA>(tile_a, a, 64, 64);
  store_swizzled<PanelsB>(tile_b, b, b_reduced ? kN : kReduced, b_reduced ? kReduced : kN);
  fence_async_shared();
  __syncthreads();
  const uint32_t address_a = shared_address(tile_a);
  const uint32_t address_b = shared_address(tile_b);
  float d[kN / 2];
  for (float& value : d) {
    value = 1e9f;  // must be overwritten by the first step
  }
  uint32_t words[4][4];
  for (int step = 0; step < 4; ++step) {
    for (int i = 0; i < 4; ++i) {
      const TilePlace place = operand_place(threadIdx.x, i);
      words[step][i] =
          *reinterpret_cast<const uint32_t*>(a + place.row * kReduced + 16 * step + place.column);
    }
  }
  wgmma_hold(d);
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const uint64_t desc_b =
        b_reduced ? PanelsB::k_major(address_b + PanelsB::k_major_step(step, kN))
                  : PanelsB::mn_major(address_b + PanelsB::mn_major_step(step), kReduced);
    if constexpr (kFromRegisters) {
      Wgmma<T, kN>::template from_registers<kMajorB>(
          d, words[step][0], words[step][1], words[step][2], words[step][3], desc_b, step > 0);
    } else {
      const uint64_t desc_a =
          kMajorA == Major::kReduced
              ? PanelsA::k_major(address_a + PanelsA::k_major_step(step, kRows))
              : PanelsA::mn_major(address_a + PanelsA::mn_major_step(step), kReduced);
      Wgmma<T, kN>::template from_shared<kMajorA, kMajorB>(d, desc_a, desc_b, step > 0);
    }
  }
  wgmma_commit();
  wgmma_wait<0>();
  wgmma_hold(d);
  for (int i = 0; i < kN / 2; ++i) {
    const TilePlace place = accumulator_place(threadIdx.x, i);
    c[place.row * kN + place.column] = d[i];
  }
}

template <class T, int kN, Major kMajorA, Major kMajorB, bool kFromRegisters = false,
          class PanelsA = PanelLayout<128>, class PanelsB = PanelLayout<128>>
void check_wgmma() {
  const std::vector<T> a = integers<T>(kRows * kReduced, 1);
  const std::vector<T> b = integers<T>(kN * kReduced, 2);
  const Buffer<T> device_a(a);
  const Buffer<T> device_b(b);
  const Buffer<float> c(std::vector<float>(kRows * kN, -1));
  auto* kernel = &wgmma_kernel<T, kN, kMajorA, kMajorB, kFromRegisters, PanelsA, PanelsB>;
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
                      << static_cast<int>(kMajorB) << (kFromRegisters ? ", A in registers" : "")
                      << ", panels of " << PanelsA::kColumns << ", " << PanelsB::kColumns;
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

// All shapes that wgmma.cuh offers.
template <class T, int... kNs>
void check_shapes() {
  (check_wgmma_majors<T, kNs>(), ...);
}

TEST(Bricks, WgmmaMultipliesInAllShapesAndMajors) {
  FLASHLOOM_NEEDS_HOPPER();
  check_shapes<__nv_bfloat16, 32, 64, 80, 96, 112, 128, 144, 160, 176, 192, 256>();
  check_shapes<__half, 32, 64, 96, 128, 256>();
}

TEST(Bricks, WgmmaReadsNarrowPanels) {
  FLASHLOOM_NEEDS_HOPPER();
  using Wide = PanelLayout<128>;
  using Narrow = PanelLayout<32>;
  check_wgmma<__nv_bfloat16, 80, Major::kOther, Major::kOther, false, Wide, Narrow>();
  check_wgmma<__half, 80, Major::kReduced, Major::kOther, false, Wide, Narrow>();
  check_wgmma<__half, 32, Major::kReduced, Major::kOther, true, Wide, Narrow>();
}

TEST(Bricks, WgmmaReadsPanelsOf32Columns) {
  FLASHLOOM_NEEDS_HOPPER();
  using Panels = PanelLayout<64>;
  using Narrow = PanelLayout<32>;
  using T = __nv_bfloat16;
  check_wgmma<T, 96, Major::kReduced, Major::kReduced, false, Panels, Panels>();
  check_wgmma<T, 96, Major::kReduced, Major::kOther, true, Panels, Panels>();
  check_wgmma<T, 96, Major::kOther, Major::kOther, false, Panels, Narrow>();
  check_wgmma<__half, 64, Major::kOther, Major::kReduced, false, Panels, Panels>();
}

}  // namespace
}  // namespace flashloom::cuda
