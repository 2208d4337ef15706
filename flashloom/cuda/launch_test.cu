#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <vector>

#include "flashloom/cuda/bricks_test.cuh"
#include "flashloom/cuda/launch.cuh"
#include "flashloom/cuda/ptx/grid.cuh"

// Kernels of one stream that overlap: the second starts while the first one runs, and reads what it
// wrote.

namespace flashloom::cuda {
namespace {

constexpr unsigned kBlocks = 4;
constexpr unsigned kThreads = 128;
constexpr unsigned kCount = kBlocks * kThreads;
constexpr uint64_t kPatience = 100'000'000;  // ns

__device__ uint64_t nanoseconds() {
  uint64_t time;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(time));
  return time;
}

// Lets the next kernel start and waits for it to say so, at most for a while; then writes.
__global__ void first_kernel(const int* started, int* seen, int* numbers, int round) {
  let_next_kernel_start();
  if (threadIdx.x == 0) {
    const uint64_t begin = nanoseconds();
    bool found = false;
    while (!found && nanoseconds() - begin < kPatience) {
      found = *static_cast<const volatile int*>(started) == round;
    }
    if (found) {
      atomicAdd(seen, 1);
    }
  }
  __syncthreads();
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  numbers[i] = round * 1000 + static_cast<int>(i);
}

// Other threads' numbers, so that nothing but the wait orders the two.
__global__ void second_kernel(int* started, const int* numbers, int* out, int round) {
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    *static_cast<volatile int*>(started) = round;
  }
  wait_for_earlier_kernel();
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  out[i] = numbers[kCount - 1 - i];
}

struct Pair {
  Buffer<int> started{std::vector<int>(1, 0)};
  Buffer<int> seen{std::vector<int>(1, 0)};
  Buffer<int> numbers{std::vector<int>(kCount, -1)};
  Buffer<int> out{std::vector<int>(kCount, -1)};

  void launch_first(int round) const {
    first_kernel<<<kBlocks, kThreads>>>(started.data(), seen.data(), numbers.data(), round);
    check(cudaGetLastError(), "first_kernel");
  }

  // What the second kernel should have read.
  static std::vector<int> expected(int round) {
    std::vector<int> values(kCount);
    for (unsigned i = 0; i < kCount; ++i) {
      values[i] = round * 1000 + static_cast<int>(kCount - 1 - i);
    }
    return values;
  }
};

// compute-sanitizer runs one kernel at a time, and reports launches that are refused.
bool watched_by_sanitizer() {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find("sanitizer") != std::string::npos) {
      return true;
    }
  }
  return false;
}

TEST(Bricks, KernelsOverlapAndReadWhatTheOneBeforeWrote) {
  FLASHLOOM_NEEDS_HOPPER();
  const Pair pair;
  // A kernel is loaded by its first launch, which may wait for those that run.
  second_kernel<<<kBlocks, kThreads>>>(pair.started.data(), pair.numbers.data(), pair.out.data(),
                                       0);
  check(cudaDeviceSynchronize(), "second_kernel");
  const int rounds = watched_by_sanitizer() ? 1 : 20;
  for (int round = 1; round <= rounds; ++round) {
    pair.launch_first(round);
    launch_overlapping(&second_kernel, "second_kernel", kBlocks, kThreads, 0, nullptr,
                       pair.started.data(), pair.numbers.data(), pair.out.data(), round);
    ASSERT_EQ(pair.out.read(), Pair::expected(round)) << "round " << round;
  }
  if (!watched_by_sanitizer()) {
    // Nothing promises it, and other processes may hold the GPU; without it there would be none.
    EXPECT_GT(pair.seen.read()[0], rounds * static_cast<int>(kBlocks) / 2)
        << "blocks of the first kernel that saw the second one start";
  }
}

TEST(Bricks, KernelsLaunchedInTheOrdinaryWayDoNotOverlap) {
  FLASHLOOM_NEEDS_HOPPER();
  const Pair pair;
  pair.launch_first(1);
  second_kernel<<<kBlocks, kThreads>>>(pair.started.data(), pair.numbers.data(), pair.out.data(),
                                       1);
  EXPECT_EQ(pair.out.read(), Pair::expected(1));
  EXPECT_EQ(pair.seen.read()[0], 0);
}

TEST(Bricks, LaunchesThatFailSayWhichAndLeaveNoErrorBehind) {
  FLASHLOOM_NEEDS_HOPPER();
  if (watched_by_sanitizer()) {
    GTEST_SKIP() << "compute-sanitizer reports the launch that is to fail";
  }
  const Pair pair;
  try {
    launch_overlapping(&second_kernel, "second_kernel", kBlocks, 4096, 0, nullptr,
                       pair.started.data(), pair.numbers.data(), pair.out.data(), 1);
    FAIL() << "a block of 4096 threads was launched";
  } catch (const CudaError& error) {
    EXPECT_NE(std::string(error.what()).find("second_kernel: "), std::string::npos) << error.what();
  }
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(pair.out.read(), std::vector<int>(kCount, -1));
}

}  // namespace
}  // namespace flashloom::cuda
