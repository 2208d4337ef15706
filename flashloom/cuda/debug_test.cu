#include <cuda_runtime.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "flashloom/cuda/bricks_test.cuh"
#include "flashloom/cuda/debug.cuh"
#include "flashloom/cuda/ptx/barrier.cuh"
#include "flashloom/cuda/ptx/mbarrier.cuh"

// What a debug build says of waits that do not end. Each test runs its kernel in a process of its
// own, for the trap ends the context.

namespace flashloom::cuda {
namespace {

enum class Fault { none, missing_arrival, missing_bytes, missing_warp };

// A producer thread and consumers over two rounds of a barrier; one arrival of the second round may
// be missing.
__global__ void round_kernel(Fault fault, int* out) {
  __shared__ uint64_t full;
  __shared__ int number;
  if (threadIdx.x == 0) {
    mbarrier_init(&full, 1);
    mbarrier_init_fence();
    begin_debug_block();
  }
  __syncthreads();
  for (uint32_t round = 0; round < 2; ++round) {
    if (threadIdx.x == 0) {
      number = static_cast<int>(round) + 7;
      if (round == 1 && fault == Fault::missing_bytes) {
        mbarrier_arrive_expect(&full, 16);
      } else if (round == 0 || fault != Fault::missing_arrival) {
        mbarrier_arrive(&full);
      }
    }
    mbarrier_wait(&full, round % 2, {"a reader", "full"});
    out[threadIdx.x] = number;
    const uint32_t warps = fault == Fault::missing_warp ? 3 : 2;
    named_barrier_sync(1, round == 0 ? 64 : 32 * warps, {"a reader", "its fellows"});
  }
}

[[noreturn]] void run_and_exit(Fault fault) {
  const Buffer<int> out(std::vector<int>(64, 0));
  round_kernel<<<3, 64>>>(fault, out.data());
  const cudaError_t error = cudaDeviceSynchronize();
  std::fflush(stdout);
  std::fprintf(stderr, "synchronize: %s\n", cudaGetErrorName(error));
  std::_Exit(error == cudaSuccess ? 0 : 3);
}

class DebugBuild : public testing::Test {
 protected:
  void SetUp() override {
    if (!kDebug) {
      GTEST_SKIP() << "not a debug build";
    }
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {
      GTEST_SKIP() << "no GPU on this host";
    }
    GTEST_FLAG_SET(death_test_style, "threadsafe");  // a fork would share the context
  }

  // What the kernel prints goes to the standard output, which a death test does not look at.
  static void expect_message(Fault fault, const char* message) {
    EXPECT_EXIT(
        {
          std::fflush(stdout);
          dup2(2, 1);
          run_and_exit(fault);
        },
        testing::ExitedWithCode(3), message);
  }
};

TEST_F(DebugBuild, SaysNothingOfWaitsThatEnd) {
  const Buffer<int> out(std::vector<int>(64, 0));
  round_kernel<<<3, 64>>>(Fault::none, out.data());
  EXPECT_EQ(out.read(), std::vector<int>(64, 8));
}

TEST_F(DebugBuild, NamesTheBarrierThatNobodyArrivesAt) {
  expect_message(Fault::missing_arrival,
                 "a reader has waited for full, phase 1, for more than 2 s; block \\(");
}

TEST_F(DebugBuild, NamesTheBarrierWhoseBytesDoNotCome) {
  expect_message(Fault::missing_bytes, "a reader has waited for full, phase 1,");
}

TEST_F(DebugBuild, NamesTheNamedBarrierThatAWarpMisses) {
  expect_message(Fault::missing_warp, "a reader has waited for its fellows, phase ");
}

}  // namespace
}  // namespace flashloom::cuda
