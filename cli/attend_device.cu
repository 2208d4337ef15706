#include <cuda_runtime.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "cli/attend_device.h"
#include "flashloom/cuda/error.cuh"

namespace flashloom::cli {
namespace {

using cuda::check;

/// What the tensor cores of a multiprocessor do in a clock, two operations a multiply-add, in bf16
/// and f16 with sums in f32 (NVIDIA's data sheets: 989 TFLOP/s of 132 multiprocessors at 1.83 GHz;
/// 312 of 108 at 1.41); 0 if not known.
double tensor_operations(int major, int minor) {
  return major == 9 && minor == 0 ? 4096 : major == 8 && minor == 0 ? 2048 : 0;
}

class CudaDevice : public AttendDevice {
 public:
  CudaDevice() {
    check(cudaGetDeviceProperties(&properties_, 0), "cudaGetDeviceProperties");
    check(cudaDeviceGetAttribute(&kilohertz_, cudaDevAttrClockRate, 0), "cudaDeviceGetAttribute");
    check(cudaStreamCreate(&stream_), "cudaStreamCreate");
    check(cudaEventCreate(&start_), "cudaEventCreate");
    check(cudaEventCreate(&stop_), "cudaEventCreate");
  }

  ~CudaDevice() override {
    for (void* piece : pieces_) {
      cudaFree(piece);
    }
    cudaEventDestroy(start_);
    cudaEventDestroy(stop_);
    cudaStreamDestroy(stream_);
  }

  Device device() const override { return {Device::Kind::cuda, 0}; }

  std::string name() const override { return properties_.name; }

  std::span<std::byte> allocate(int64_t bytes) override {
    void* piece = nullptr;
    check(cudaMalloc(&piece, static_cast<size_t>(std::max<int64_t>(bytes, 1))), "cudaMalloc");
    pieces_.push_back(piece);
    return {static_cast<std::byte*>(piece), static_cast<size_t>(bytes)};
  }

  void copy_in(void* to, const void* from, int64_t bytes) override { copy(to, from, bytes); }

  void copy_out(void* to, const void* from, int64_t bytes) override { copy(to, from, bytes); }

  double seconds(FunctionRef<void(Stream)> run) override {
    check(cudaEventRecord(start_, stream_), "cudaEventRecord");
    run({stream_});
    check(cudaEventRecord(stop_, stream_), "cudaEventRecord");
    check(cudaEventSynchronize(stop_), "cudaEventSynchronize");
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, start_, stop_), "cudaEventElapsedTime");
    return milliseconds * 1e-3;
  }

  // f32 is worked on in three products of tf32, at half the rate of bf16.
  double peak_flops(DType dtype) override {
    return tensor_operations(properties_.major, properties_.minor) / (dtype == DType::f32 ? 6 : 1) *
           properties_.multiProcessorCount * kilohertz_ * 1e3;
  }

  const char* peak_name() const override { return "tensor core"; }

  double copy_bytes_per_second() override {
    constexpr int64_t kBytes = int64_t{512} << 20;  // ten times a second-level cache
    void* from = allocate(kBytes).data();
    void* to = allocate(kBytes).data();
    double best = 0;
    for (int i = 0; i < 5; ++i) {
      const double time = seconds([&](Stream) {
        check(cudaMemcpyAsync(to, from, kBytes, cudaMemcpyDeviceToDevice, stream_),
              "cudaMemcpyAsync");
      });
      best = std::max(best, 2 * kBytes / time);
    }
    return best;
  }

 private:
  void copy(void* to, const void* from, int64_t bytes) {
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    check(cudaMemcpy(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault), "cudaMemcpy");
  }

  cudaDeviceProp properties_ = {};
  int kilohertz_ = 0;  // the highest clock
  cudaStream_t stream_ = nullptr;
  cudaEvent_t start_ = nullptr;
  cudaEvent_t stop_ = nullptr;
  std::vector<void*> pieces_;
};

}  // namespace

std::unique_ptr<AttendDevice> cuda_attend_device(std::string& reason) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    reason = std::string("a machine without a usable GPU (") +
             (error != cudaSuccess ? cudaGetErrorString(error) : "none found") + ")";
    return nullptr;
  }
  return std::make_unique<CudaDevice>();
}

}  // namespace flashloom::cli
