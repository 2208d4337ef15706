#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cli/attend_case.h"
#include "flashloom/core/function_ref.h"

namespace flashloom::cli {

/// Where a call runs: memory, clock and bounds of one device.
class AttendDevice {
 public:
  AttendDevice() = default;
  virtual ~AttendDevice() = default;
  AttendDevice(const AttendDevice&) = delete;
  AttendDevice& operator=(const AttendDevice&) = delete;

  virtual Device device() const = 0;

  /// "" for the CPU.
  virtual std::string name() const = 0;

  /// Memory at a multiple of 64 bytes, as long as this object lives.
  virtual std::span<std::byte> allocate(int64_t bytes) = 0;
  virtual void copy_in(void* to, const void* from, int64_t bytes) = 0;
  virtual void copy_out(void* to, const void* from, int64_t bytes) = 0;

  /// Seconds of what run() puts on the stream.
  virtual double seconds(FunctionRef<void(Stream)> run) = 0;

  /// The most operations a second in tensors of this storage, two a multiply-add; 0 if not known.
  virtual double peak_flops(DType dtype) = 0;
  virtual const char* peak_name() const = 0;

  /// Bytes read plus bytes written a second when memory is copied.
  virtual double copy_bytes_per_second() = 0;
};

/// "cpu" or "cuda". Throws UsageError if the program has no CUDA or the machine no GPU.
std::unique_ptr<AttendDevice> attend_device(const std::string& name);

/// The first GPU; only in builds with CUDA. Null, and the reason, where there is none.
std::unique_ptr<AttendDevice> cuda_attend_device(std::string& reason);

/// Every tensor of a call.
struct AttendViews {
  AttentionInputs inputs;
  AttentionOptions options;
  AttentionOutputs outputs;
  AttentionSaved saved;
  AttentionGradients gradients;
};

/// A call and its results on a device: the host's tensors on the CPU, copies elsewhere.
class AttendPlacedCall {
 public:
  AttendPlacedCall(AttendDevice& device, const AttendCase& call, const AttendResults& results);

  const AttendViews& views() const { return views_; }

  /// Copies what the call wrote to the results that it was made with.
  void download() const;

 private:
  struct Copy {
    void* host;
    std::byte* placed;
    int64_t bytes;
    bool written;
  };

  template <class View>
  void place(View& view, bool written);

  AttendDevice& device_;
  AttendViews views_;
  std::vector<Copy> copies_;
};

}  // namespace flashloom::cli
