#include "cli/attend_device.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>

#include "cli/arguments.h"
#include "flashloom/core/memory_bandwidth.h"
#include "flashloom/ops/attention/attention_option_views.h"
#include "flashloom/ops/linear/peak_flops.h"

namespace flashloom::cli {
namespace {

#ifdef FLASHLOOM_WITH_CUDA
constexpr bool kWithCuda = true;
#else
constexpr bool kWithCuda = false;  // calls under `if constexpr` below are discarded, never linked
#endif

class CpuDevice : public AttendDevice {
 public:
  Device device() const override { return {}; }

  std::string name() const override { return ""; }

  std::span<std::byte> allocate(int64_t bytes) override {
    pieces_.emplace_back(DType::u8, std::vector{std::max<int64_t>(bytes, 1)});
    return {static_cast<std::byte*>(pieces_.back().view().data), static_cast<size_t>(bytes)};
  }

  void copy_in(void* to, const void* from, int64_t bytes) override {
    std::copy_n(static_cast<const std::byte*>(from), bytes, static_cast<std::byte*>(to));
  }

  void copy_out(void* to, const void* from, int64_t bytes) override { copy_in(to, from, bytes); }

  double seconds(FunctionRef<void(Stream)> run) override {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point start = Clock::now();
    run({});
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  double peak_flops(DType /*dtype*/) override { return measure_peak_flops(); }

  const char* peak_name() const override { return "f32 multiply-add"; }

  double copy_bytes_per_second() override {
    // More than a last-level cache holds.
    return measure_copy_bytes_per_second(int64_t{128} << 20);
  }

 private:
  std::vector<AttendTensor> pieces_;
};

// Calls visit(view, whether the call writes it) for every tensor of a call.
template <class Visit>
void for_each_view(AttendViews& views, const Visit& visit) {
  for (ConstTensorView* view : {&views.inputs.q, &views.inputs.k, &views.inputs.v,
                                &views.saved.dout, &views.saved.dlse, &views.saved.dentropy}) {
    visit(*view, false);
  }
  for_each_option_view(views.options, visit);
  for (TensorView* view : {&views.outputs.out, &views.outputs.lse, &views.outputs.entropy,
                           &views.gradients.dq, &views.gradients.dk, &views.gradients.dv,
                           &views.gradients.dsinks, &views.gradients.dbias}) {
    visit(*view, true);
  }
  // The forward pass's results once more.
  for (ConstTensorView* view : {&views.saved.out, &views.saved.lse, &views.saved.entropy}) {
    visit(*view, false);
  }
}

}  // namespace

std::unique_ptr<AttendDevice> attend_device(const std::string& name) {
  if (name == "cpu") {
    return std::make_unique<CpuDevice>();
  }
  std::string reason = "a program built without CUDA";
  if constexpr (kWithCuda) {
    std::unique_ptr<AttendDevice> device = cuda_attend_device(reason);
    if (device != nullptr) {
      return device;
    }
  }
  throw UsageError(fmt::format("--device: expected cpu in {}, got {}", reason, name));
}

template <class View>
void AttendPlacedCall::place(View& view, bool written) {
  if (!view) {
    return;
  }
  auto* host = const_cast<void*>(static_cast<const void*>(view.data));
  auto copy = std::find_if(copies_.begin(), copies_.end(),
                           [&](const Copy& other) { return other.host == host; });
  if (copy == copies_.end()) {
    std::byte* placed = device_.allocate(view.bytes()).data();
    copies_.push_back({host, placed, view.bytes(), written});
    copy = copies_.end() - 1;
    device_.copy_in(placed, host, view.bytes());
  }
  view.data = copy->placed;
  view.device = device_.device();
}

AttendPlacedCall::AttendPlacedCall(AttendDevice& device, const AttendCase& call,
                                   const AttendResults& results)
    : device_(device),
      views_{call.inputs(), call.options(), call.outputs(results), call.saved(results),
             call.gradients(results)} {
  if (!device.device().is_cpu()) {
    for_each_view(views_, [&](auto& view, bool written) { place(view, written); });
  }
}

void AttendPlacedCall::download() const {
  for (const Copy& copy : copies_) {
    if (copy.written) {
      device_.copy_out(copy.host, copy.placed, copy.bytes);
    }
  }
}

}  // namespace flashloom::cli
