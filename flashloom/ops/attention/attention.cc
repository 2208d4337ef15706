#include "flashloom/ops/attention/attention.h"

#include <fmt/format.h>

#include <algorithm>

#include "flashloom/core/check.h"
#include "flashloom/ops/attention/attention_reference.h"
#include "flashloom/ops/attention/attention_validation.h"
#include "flashloom/ops/attention/cpu/attention_cpu.h"
#include "flashloom/ops/attention/decode/decode.h"
#include "flashloom/ops/attention/portable/attention_portable.h"
#include "flashloom/ops/attention/portable/reference.h"
#include "flashloom/ops/attention/sm90/attention_sm90.h"

namespace flashloom {
namespace {

constexpr std::string_view kForward = "attention_forward";
constexpr std::string_view kBackward = "attention_backward";

#ifdef FLASHLOOM_WITH_CUDA
constexpr bool kWithCuda = true;
#else
constexpr bool kWithCuda = false;  // calls under `if constexpr` below are discarded, never linked
#endif

// What the backends of a GPU do not cover of a call, "" where they cover it.
struct Refusals {
  std::string sm90;
  std::string portable;
};

AttentionChoice choose_cuda(std::string_view op, const AttentionOptions& options,
                            const Refusals& refusals) {
  if constexpr (!kWithCuda) {
    throw Unsupported(op, "tensors of a GPU in a build without CUDA");
  }
  const AttentionBackend required = options.execution.backend;
  if (required == AttentionBackend::reference) {
    return {AttentionBackend::reference, "required"};
  }
  if (required == AttentionBackend::cpu) {
    throw Unsupported(
        op, fmt::format("the {} backend on tensors of a GPU", attention_backend_name(required)));
  }
  if (refusals.sm90.empty() && required != AttentionBackend::portable) {
    return {AttentionBackend::sm90, required == AttentionBackend::sm90 ? "required" : ""};
  }
  if (required == AttentionBackend::sm90) {
    throw Unsupported(op, fmt::format("{} in the sm90 backend", refusals.sm90));
  }
  if (required == AttentionBackend::portable && refusals.portable.empty()) {
    return {AttentionBackend::portable, "required"};
  }
  if (required == AttentionBackend::portable) {
    throw Unsupported(op, fmt::format("{} in the portable backend", refusals.portable));
  }
  if (!refusals.portable.empty()) {
    return {AttentionBackend::reference,
            fmt::format("the sm90 backend does not cover {}, nor the portable one {}",
                        refusals.sm90, refusals.portable)};
  }
  return {AttentionBackend::portable,
          fmt::format("the sm90 backend does not cover {}", refusals.sm90)};
}

// The Hopper kernels run on Hopper alone.
std::string refusal_of_device(Device device, std::string refusal) {
  if constexpr (kWithCuda) {
    if (refusal.empty() && !portable::is_hopper(device.index)) {
      return "a device that is not of compute capability 9.0";
    }
  }
  return refusal;
}

// `refusal` says what the CPU kernel does not cover, "" if it covers the call.
AttentionChoice choose(std::string_view op, const AttentionOptions& options,
                       const std::string& refusal) {
  const AttentionBackend required = options.execution.backend;
  if (required == AttentionBackend::reference) {
    return {AttentionBackend::reference, "required"};
  }
  if (required == AttentionBackend::sm90 || required == AttentionBackend::portable) {
    throw Unsupported(
        op, fmt::format("the {} backend on tensors of the CPU", attention_backend_name(required)));
  }
  if (refusal.empty()) {
    return {AttentionBackend::cpu, ""};
  }
  if (required == AttentionBackend::cpu) {
    throw Unsupported(op, fmt::format("{} in the cpu backend", refusal));
  }
  return {AttentionBackend::reference, fmt::format("the cpu backend does not cover {}", refusal)};
}

void check_workspace(std::string_view op, std::span<std::byte> workspace, int64_t bytes) {
  check(static_cast<int64_t>(workspace.size()) >= bytes, op, "workspace",
        fmt::format("{} bytes", bytes), fmt::format("{}", workspace.size()));
  check(bytes == 0 || reinterpret_cast<uintptr_t>(workspace.data()) % 64 == 0, op, "workspace",
        "alignment to 64 bytes", "less");
}

struct ForwardChoice : AttentionChoice {
  bool decodes = false;  // of sm90: the kernel for few queries a sequence
};

ForwardChoice forward_choice(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                             const AttentionOptions& options) {
  if (inputs.q.device.is_cpu()) {
    return {choose(kForward, options, attention_forward_cpu_refusal(outputs, inputs, options))};
  }
  const bool decodes = decode::attention_decode_refusal(outputs, inputs, options).empty();
  const Refusals refusals = {
      refusal_of_device(inputs.q.device,
                        decodes ? "" : sm90::attention_forward_refusal(outputs, inputs, options)),
      portable::attention_forward_refusal(outputs, inputs, options)};
  return {choose_cuda(kForward, options, refusals), decodes};
}

AttentionChoice backward_choice(const AttentionGradients& gradients, const AttentionInputs& inputs,
                                const AttentionSaved& saved, const AttentionOptions& options) {
  if (!inputs.q.device.is_cpu()) {
    return choose_cuda(kBackward, options,
                       {refusal_of_device(inputs.q.device, sm90::attention_backward_refusal(
                                                               gradients, inputs, saved, options)),
                        portable::attention_backward_refusal(gradients, inputs, saved, options)});
  }
  return choose(kBackward, options,
                attention_backward_cpu_refusal(gradients, inputs, saved, options));
}

}  // namespace

std::string_view attention_backend_name(AttentionBackend backend) {
  constexpr std::string_view kNames[] = {"automatic", "reference", "cpu", "portable", "sm90"};
  return kNames[static_cast<size_t>(backend)];
}

void attention_forward(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                       std::span<std::byte> workspace, const AttentionOptions& options,
                       Stream stream) {
  validate_attention_forward(outputs, inputs, options);
  const ForwardChoice choice = forward_choice(outputs, inputs, options);
  if (inputs.q.device.is_cpu()) {
    validate_attention_index_data(kForward, inputs, options);
  }
  if (choice.backend == AttentionBackend::reference && inputs.q.device.is_cpu()) {
    attention_forward_reference(outputs, inputs, options);
    return;
  }
  if constexpr (kWithCuda) {
    if (choice.backend == AttentionBackend::reference) {
      check_workspace(kForward, workspace,
                      portable::attention_reference_forward_bytes(inputs, options));
      portable::attention_report_faults(inputs, options, stream);
      portable::attention_forward_reference(outputs, inputs, workspace, options, stream);
      return;
    }
    if (choice.backend == AttentionBackend::sm90 && choice.decodes) {
      check_workspace(kForward, workspace, decode::attention_decode_bytes(inputs, options));
      decode::attention_decode(outputs, inputs, workspace, options, stream);
      return;
    }
    if (choice.backend == AttentionBackend::sm90) {
      check_workspace(kForward, workspace, sm90::attention_forward_bytes(inputs, options));
      sm90::attention_forward(outputs, inputs, workspace, options, stream);
      return;
    }
    if (choice.backend == AttentionBackend::portable) {
      portable::attention_report_faults(inputs, options, stream);
      portable::attention_forward(outputs, inputs, options, stream);
      return;
    }
  }
  check_workspace(kForward, workspace, attention_forward_cpu_bytes(outputs, inputs, options));
  attention_forward_cpu(outputs, inputs, workspace, options);
}

void attention_backward(const AttentionGradients& gradients, const AttentionInputs& inputs,
                        const AttentionSaved& saved, std::span<std::byte> workspace,
                        const AttentionOptions& options, Stream stream) {
  validate_attention_backward(gradients, inputs, saved, options);
  const AttentionChoice choice = backward_choice(gradients, inputs, saved, options);
  if (inputs.q.device.is_cpu()) {
    validate_attention_index_data(kBackward, inputs, options);
  }
  if (choice.backend == AttentionBackend::reference && inputs.q.device.is_cpu()) {
    attention_backward_reference(gradients, inputs, saved, options);
    return;
  }
  if constexpr (kWithCuda) {
    if (choice.backend == AttentionBackend::reference) {
      check_workspace(kBackward, workspace,
                      portable::attention_reference_backward_bytes(inputs, options));
      portable::attention_report_faults(inputs, options, stream);
      portable::attention_backward_reference(gradients, inputs, saved, workspace, options, stream);
      return;
    }
    if (choice.backend == AttentionBackend::sm90) {
      check_workspace(kBackward, workspace, sm90::attention_backward_bytes(inputs, saved, options));
      sm90::attention_backward(gradients, inputs, saved, workspace, options, stream);
      return;
    }
    if (choice.backend == AttentionBackend::portable) {
      check_workspace(kBackward, workspace,
                      portable::attention_backward_bytes(inputs, saved, options));
      portable::attention_report_faults(inputs, options, stream);
      portable::attention_backward(gradients, inputs, saved, workspace, options, stream);
      return;
    }
  }
  check_workspace(kBackward, workspace,
                  attention_backward_cpu_bytes(gradients, inputs, saved, options));
  attention_backward_cpu(gradients, inputs, saved, workspace, options);
}

int64_t attention_forward_workspace_bytes(const AttentionOutputs& outputs,
                                          const AttentionInputs& inputs,
                                          const AttentionOptions& options) {
  validate_attention_forward(outputs, inputs, options);
  const ForwardChoice choice = forward_choice(outputs, inputs, options);
  if constexpr (kWithCuda) {
    if (choice.backend == AttentionBackend::reference && !inputs.q.device.is_cpu()) {
      return portable::attention_reference_forward_bytes(inputs, options);
    }
    if (choice.backend == AttentionBackend::sm90) {
      return choice.decodes ? decode::attention_decode_bytes(inputs, options)
                            : sm90::attention_forward_bytes(inputs, options);
    }
  }
  return choice.backend == AttentionBackend::cpu
             ? attention_forward_cpu_bytes(outputs, inputs, options)
             : 0;
}

int64_t attention_backward_workspace_bytes(const AttentionGradients& gradients,
                                           const AttentionInputs& inputs,
                                           const AttentionSaved& saved,
                                           const AttentionOptions& options) {
  validate_attention_backward(gradients, inputs, saved, options);
  const AttentionBackend backend = backward_choice(gradients, inputs, saved, options).backend;
  if constexpr (kWithCuda) {
    if (backend == AttentionBackend::reference && !inputs.q.device.is_cpu()) {
      return portable::attention_reference_backward_bytes(inputs, options);
    }
    // Addresses may decide between the two later (the Hopper kernels want 16-byte steps), and here
    // they may be null.
    const int64_t bytes = portable::attention_backward_bytes(inputs, saved, options);
    if (backend == AttentionBackend::sm90) {
      return std::max(bytes, sm90::attention_backward_bytes(inputs, saved, options));
    }
    if (backend == AttentionBackend::portable) {
      return bytes;
    }
  }
  return backend == AttentionBackend::cpu
             ? attention_backward_cpu_bytes(gradients, inputs, saved, options)
             : 0;
}

void attention_merge(TensorView out, TensorView lse, ConstTensorView parts,
                     ConstTensorView part_lse, ConstTensorView sinks, Stream stream) {
  constexpr std::string_view kMerge = "attention_merge";
  validate_attention_merge(out, lse, parts, part_lse, sinks);
  if (out.device.is_cpu()) {
    attention_merge_reference(out, lse, parts, part_lse, sinks);
    return;
  }
  if constexpr (kWithCuda) {
    for (const ConstTensorView& view :
         {ConstTensorView(out), ConstTensorView(lse), parts, part_lse, sinks}) {
      check(!view || view.device == out.device, kMerge, "tensors", "all on the device of out",
            "several devices");
      if (view && view.dtype == DType::f64) {
        throw Unsupported(kMerge, "f64 on a GPU");
      }
    }
    portable::attention_merge(out, lse, parts, part_lse, sinks, stream);
  } else {
    throw Unsupported(kMerge, "tensors of a GPU in a build without CUDA");
  }
}

AttentionChoice attention_forward_backend(const AttentionOutputs& outputs,
                                          const AttentionInputs& inputs,
                                          const AttentionOptions& options) {
  validate_attention_forward(outputs, inputs, options);
  return forward_choice(outputs, inputs, options);
}

AttentionChoice attention_backward_backend(const AttentionGradients& gradients,
                                           const AttentionInputs& inputs,
                                           const AttentionSaved& saved,
                                           const AttentionOptions& options) {
  validate_attention_backward(gradients, inputs, saved, options);
  return backward_choice(gradients, inputs, saved, options);
}

void attention_check(const AttentionOptions& options, Stream stream) {
  const TensorView& status = options.execution.status;
  if (!status) {
    return;
  }
  int32_t value = 0;
  if (status.device.is_cpu()) {
    value = *static_cast<const int32_t*>(status.data);
  } else {
    if constexpr (kWithCuda) {
      value = portable::attention_status(status, stream);
    } else {
      throw Unsupported("attention_check", "tensors of a GPU in a build without CUDA");
    }
  }
  if (value != 0) {
    throw InvalidArgument("attention_check", "index data", "lengths, pages and blocks in range",
                          "a status word that is set");
  }
}

}  // namespace flashloom
