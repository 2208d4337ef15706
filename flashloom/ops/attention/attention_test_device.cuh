#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include "flashloom/cuda/error.cuh"
#include "flashloom/ops/attention/attention_option_views.h"
#include "flashloom/ops/attention/attention_test_case.h"

// Runs calls on tensors of the CPU through the GPU: copies every view of the call into one arena of
// device memory, poisoned all over, and back. What no output owns must come back unchanged.

namespace flashloom::attention_test {

inline bool has_gpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

/// A stream of the calling thread's own, so that calls of several threads run side by side. It
/// waits for the legacy default stream, and that one for it. In a debug build all share that one:
/// its named barriers are counters in memory, one set for all kernels.
inline cudaStream_t own_stream() {
#ifdef FLASHLOOM_CUDA_DEBUG
  return nullptr;
#else
  struct Owner {
    Owner() {
      cuda::check(cudaStreamCreate(&stream), "cudaStreamCreate");
      // The pool keeps what is freed; mapping memory anew takes longer than small kernels run.
      cudaMemPool_t pool = nullptr;
      cuda::check(cudaDeviceGetDefaultMemPool(&pool, 0), "cudaDeviceGetDefaultMemPool");
      uint64_t all = UINT64_MAX;
      cuda::check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all),
                  "cudaMemPoolSetAttribute");
    }

    ~Owner() { cudaStreamDestroy(stream); }

    cudaStream_t stream = nullptr;
  };

  thread_local const Owner owner;
  return owner.stream;
#endif
}

/// How rows of q, k, v, out and their gradients lie in device memory.
enum class Layout {
  contiguous,  // (B, H, S, D)
  rows_first,  // (B, S, H, D) with 8 elements between rows, as models hold it
  unaligned,   // (B, H, S, D), 3 elements between rows, from an odd element on
};

class DeviceArena {
 public:
  explicit DeviceArena(Layout layout) : layout_(layout) {}

  ~DeviceArena() {
    if (device_ != nullptr) {
      cudaFreeAsync(device_, own_stream());
    }
  }

  DeviceArena(const DeviceArena&) = delete;
  DeviceArena& operator=(const DeviceArena&) = delete;

  /// Gives a view its place on the device, and its address with upload().
  template <class Void>
  void place(BasicTensorView<Void>& view, bool output, bool rows = false) {
    if (!view) {
      return;
    }
    Placed placed = {};
    placed.host.data = const_cast<void*>(static_cast<const void*>(view.data));
    placed.host.dtype = view.dtype;
    placed.host.rank = view.rank;
    placed.host.shape = view.shape;
    placed.host.strides = view.strides;
    placed.device = placed.host;
    placed.output = output;
    placed.patch = [&view](void* data) { view.data = data; };
    int64_t gap = 0;
    int64_t shift = 0;
    std::vector<int> order;
    for (int i = 0; i < view.rank; ++i) {
      order.push_back(i);
    }
    if (rows && layout_ == Layout::rows_first) {
      std::swap(order[static_cast<size_t>(view.rank - 3)],
                order[static_cast<size_t>(view.rank - 2)]);
      gap = 8;
    } else if (rows && layout_ == Layout::unaligned) {
      gap = 3;
      shift = 1;
    }
    int64_t stride = 1;
    for (size_t n = order.size(); n-- > 0;) {
      placed.device.strides[static_cast<size_t>(order[n])] = stride;
      stride *= view.shape[static_cast<size_t>(order[n])];
      stride += n + 1 == order.size() ? gap : 0;
    }
    const auto bytes = static_cast<int64_t>(dtype_bytes(view.dtype));
    view.strides = placed.device.strides;
    view.device = {Device::Kind::cuda, 0};
    view.data = nullptr;
    placed.at = used_ + shift * bytes;
    used_ = (placed.at + stride * bytes + kGuard + 255) / 256 * 256;
    placed_.push_back(placed);
  }

  /// Workspace of the call, all ones (NaN in every float type).
  void workspace(int64_t bytes) {
    workspace_at_ = used_;
    workspace_bytes_ = bytes;
    used_ = (used_ + bytes + kGuard + 255) / 256 * 256;
  }

  std::span<std::byte> upload() {
    image_.assign(static_cast<size_t>(used_), std::byte{0xff});
    for (const Placed& placed : placed_) {
      each(placed, [&](int64_t host, int64_t at, int64_t bytes) {
        std::memcpy(image_.data() + at, static_cast<const std::byte*>(placed.host.data) + host,
                    static_cast<size_t>(bytes));
      });
    }
    cuda::check(cudaMallocAsync(&device_, image_.size(), own_stream()), "cudaMallocAsync");
    refresh();
    for (const Placed& placed : placed_) {
      placed.patch(device_ + placed.at);
    }
    return {device_ + workspace_at_, static_cast<size_t>(workspace_bytes_)};
  }

  /// The image as it was uploaded, again.
  void refresh() {
    cuda::check(cudaMemcpyAsync(device_, image_.data(), image_.size(), cudaMemcpyHostToDevice,
                                own_stream()),
                "cudaMemcpyAsync");
  }

  /// Copies outputs back to the host's tensors.
  void download() {
    std::vector<std::byte> after(image_.size());
    cuda::check(
        cudaMemcpyAsync(after.data(), device_, after.size(), cudaMemcpyDeviceToHost, own_stream()),
        "cudaMemcpyAsync");
    cuda::check(cudaStreamSynchronize(own_stream()), "cudaStreamSynchronize");
    // What may have changed is taken out and put back as it was; the rest must be equal.
    const auto restore = [&](int64_t at, int64_t bytes) {
      std::memcpy(after.data() + at, image_.data() + at, static_cast<size_t>(bytes));
    };
    for (const Placed& placed : placed_) {
      if (placed.output) {
        each(placed, [&](int64_t host, int64_t at, int64_t bytes) {
          std::memcpy(static_cast<std::byte*>(placed.host.data) + host, after.data() + at,
                      static_cast<size_t>(bytes));
          restore(at, bytes);
        });
      }
    }
    restore(workspace_at_, workspace_bytes_);
    const auto [now, before] = std::mismatch(after.begin(), after.end(), image_.begin());
    EXPECT_TRUE(now == after.end())
        << "byte " << now - after.begin() << " of the arena, which no output owns, was overwritten";
  }

 private:
  static constexpr int64_t kGuard = 512;

  struct Placed {
    TensorView host, device;
    int64_t at = 0;  // byte in the arena
    bool output = false;
    std::function<void(void*)> patch;
  };

  // body(host offset, arena offset, bytes) for each stretch of elements that are neighbours in
  // both: whole rows, but where elements of a row lie apart.
  template <class Body>
  static void each(const Placed& placed, Body body) {
    if (placed.host.size() == 0) {
      return;
    }
    const auto bytes = static_cast<int64_t>(dtype_bytes(placed.host.dtype));
    const auto last = static_cast<size_t>(placed.host.rank - 1);
    const bool rows =
        placed.host.rank > 0 && placed.host.strides[last] == 1 && placed.device.strides[last] == 1;
    const int64_t run = rows ? placed.host.shape[last] : 1;
    std::array<int64_t, kMaxRank> index = {};
    for (int64_t n = 0; n < placed.host.size(); n += run) {
      int64_t from = 0;
      int64_t to = 0;
      for (int i = 0; i < placed.host.rank; ++i) {
        from += index[static_cast<size_t>(i)] * placed.host.strides[static_cast<size_t>(i)];
        to += index[static_cast<size_t>(i)] * placed.device.strides[static_cast<size_t>(i)];
      }
      body(from * bytes, placed.at + to * bytes, run * bytes);
      for (int i = placed.host.rank - (rows ? 2 : 1); i >= 0; --i) {
        if (++index[static_cast<size_t>(i)] < placed.host.shape[static_cast<size_t>(i)]) {
          break;
        }
        index[static_cast<size_t>(i)] = 0;
      }
    }
  }

  Layout layout_;
  std::vector<Placed> placed_;
  int64_t used_ = kGuard;
  int64_t workspace_at_ = 0, workspace_bytes_ = 0;
  std::vector<std::byte> image_;
  std::byte* device_ = nullptr;
};

inline void place_options(DeviceArena& arena, AttentionOptions& options) {
  for_each_option_view(options, [&](auto& view, bool written) { arena.place(view, written); });
}

class DeviceExecutor : public Executor {
 public:
  explicit DeviceExecutor(Layout layout = Layout::contiguous, int repeats = 1)
      : layout_(layout), repeats_(repeats) {}

  void forward(const AttentionOutputs& host_outputs, const AttentionInputs& host_inputs,
               const AttentionOptions& host_options) const override {
    AttentionOutputs outputs = host_outputs;
    AttentionInputs inputs = host_inputs;
    AttentionOptions options = host_options;
    DeviceArena arena(layout_);
    place_inputs(arena, inputs);
    arena.place(outputs.out, true, true);
    arena.place(outputs.lse, true);
    arena.place(outputs.entropy, true);
    place_options(arena, options);
    // The size follows from shapes alone: asked while all data is null.
    arena.workspace(attention_forward_workspace_bytes(outputs, inputs, options));
    const std::span<std::byte> workspace = arena.upload();
    call_forward(outputs, inputs, workspace, options);
    arena.download();
  }

  void backward(const AttentionGradients& host_gradients, const AttentionInputs& host_inputs,
                const AttentionSaved& host_saved,
                const AttentionOptions& host_options) const override {
    AttentionGradients gradients = host_gradients;
    AttentionInputs inputs = host_inputs;
    AttentionSaved saved = host_saved;
    AttentionOptions options = host_options;
    DeviceArena arena(layout_);
    place_inputs(arena, inputs);
    arena.place(saved.out, false, true);
    arena.place(saved.dout, false, true);
    for (ConstTensorView* view : {&saved.lse, &saved.entropy, &saved.dlse, &saved.dentropy}) {
      arena.place(*view, false);
    }
    for (TensorView* view : {&gradients.dq, &gradients.dk, &gradients.dv}) {
      arena.place(*view, true, true);
    }
    arena.place(gradients.dsinks, true);
    arena.place(gradients.dbias, true);
    place_options(arena, options);
    arena.workspace(attention_backward_workspace_bytes(gradients, inputs, saved, options));
    const std::span<std::byte> workspace = arena.upload();
    for (int i = 0; i < repeats_; ++i) {
      if (i > 0) {
        arena.refresh();
      }
      call_backward(gradients, inputs, saved, workspace, options);
    }
    arena.download();
  }

 protected:
  virtual void call_forward(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                            std::span<std::byte> workspace, const AttentionOptions& options) const {
    attention_forward(outputs, inputs, workspace, options, {own_stream()});
  }

  virtual void call_backward(const AttentionGradients& gradients, const AttentionInputs& inputs,
                             const AttentionSaved& saved, std::span<std::byte> workspace,
                             const AttentionOptions& options) const {
    attention_backward(gradients, inputs, saved, workspace, options, {own_stream()});
  }

 private:
  static void place_inputs(DeviceArena& arena, AttentionInputs& inputs) {
    arena.place(inputs.q, false, true);
    arena.place(inputs.k, false, true);
    arena.place(inputs.v, false, true);
  }

  Layout layout_;
  int repeats_;
};

/// Queries and keys by one tensor of offsets and one of used lengths: kernels that want the rows of
/// both to be the same can see that they are.
class SharedOffsetsExecutor : public DeviceExecutor {
 public:
  using DeviceExecutor::DeviceExecutor;

 protected:
  void call_forward(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                    std::span<std::byte> workspace,
                    const AttentionOptions& options) const override {
    DeviceExecutor::call_forward(outputs, inputs, workspace, shared(options));
  }

  void call_backward(const AttentionGradients& gradients, const AttentionInputs& inputs,
                     const AttentionSaved& saved, std::span<std::byte> workspace,
                     const AttentionOptions& options) const override {
    DeviceExecutor::call_backward(gradients, inputs, saved, workspace, shared(options));
  }

  static AttentionOptions shared(AttentionOptions options) {
    options.sequences.cu_key = options.sequences.cu_query;
    options.sequences.used_key = options.sequences.used_query;
    return options;
  }
};

}  // namespace flashloom::attention_test
