#include "flashloom/ops/attention/flashloom_attention.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <string>

#include "flashloom/core/check.h"
#include "flashloom/core/error.h"
#include "flashloom/ops/attention/attention.h"

namespace flashloom {
namespace {

constexpr std::string_view kOp = "flashloom_attention";

static_assert(FLASHLOOM_F32 == static_cast<int>(DType::f32));
static_assert(FLASHLOOM_F64 == static_cast<int>(DType::f64));
static_assert(FLASHLOOM_BF16 == static_cast<int>(DType::bf16));
static_assert(FLASHLOOM_F16 == static_cast<int>(DType::f16));
static_assert(FLASHLOOM_I32 == static_cast<int>(DType::i32));

/// The contract's arguments from the C struct.
struct Call {
  AttentionInputs inputs;
  AttentionOutputs outputs;
  AttentionSaved saved;
  AttentionGradients gradients;
  AttentionOptions options;
  std::span<std::byte> workspace;
  Stream stream;
};

TensorView view_of(const FlashloomTensor& tensor, Device device, const char* name) {
  check(tensor.rank >= 0 && tensor.rank <= kMaxRank, kOp, name, "rank 0 to 6",
        std::to_string(tensor.rank));
  check(tensor.dtype >= 0 && tensor.dtype <= static_cast<int32_t>(DType::u64), kOp, name,
        "a known dtype", std::to_string(tensor.dtype));
  TensorView view;
  view.data = tensor.data;
  view.dtype = static_cast<DType>(tensor.dtype);
  view.device = device;
  view.rank = tensor.rank;
  std::copy_n(tensor.shape, tensor.rank, view.shape.begin());
  std::copy_n(tensor.strides, tensor.rank, view.strides.begin());
  return view;
}

Call read_call(const FlashloomAttention* source) {
  check(source != nullptr, kOp, "call", "a struct", "null");
  check(source->size == sizeof(FlashloomAttention), kOp, "size",
        std::to_string(sizeof(FlashloomAttention)), std::to_string(source->size));
  check(source->backend >= 0 && source->backend <= static_cast<int32_t>(AttentionBackend::sm90),
        kOp, "backend", "0 to 4", std::to_string(source->backend));
  const Device device = {source->device_kind == 1 ? Device::Kind::cuda : Device::Kind::cpu,
                         source->device_index};
  Call call;
  call.inputs = {view_of(source->q, device, "q"), view_of(source->k, device, "k"),
                 view_of(source->v, device, "v")};
  call.outputs.out = view_of(source->out, device, "out");
  call.outputs.lse = view_of(source->lse, device, "lse");
  call.saved.out = call.outputs.out;
  call.saved.lse = call.outputs.lse;
  call.saved.dout = view_of(source->dout, device, "dout");
  call.saved.dlse = view_of(source->dlse, device, "dlse");
  call.gradients.dq = view_of(source->dq, device, "dq");
  call.gradients.dk = view_of(source->dk, device, "dk");
  call.gradients.dv = view_of(source->dv, device, "dv");
  AttentionSequences& sequences = call.options.sequences;
  sequences.cu_query = view_of(source->cu_query, device, "cu_query");
  sequences.cu_key = view_of(source->cu_key, device, "cu_key");
  sequences.used_query = view_of(source->used_query, device, "used_query");
  sequences.used_key = view_of(source->used_key, device, "used_key");
  sequences.max_query = source->max_query;
  sequences.max_key = source->max_key;
  call.options.visibility = {source->left, source->right};
  if (source->has_offset != 0) {
    call.options.positions.offset = source->offset;
  }
  call.options.score.scale = source->scale;
  call.options.score.sinks = view_of(source->sinks, device, "sinks");
  call.options.execution.deterministic = source->deterministic != 0;
  call.options.execution.backend = static_cast<AttentionBackend>(source->backend);
  call.workspace = {static_cast<std::byte*>(source->workspace), source->workspace_bytes};
  call.stream = {source->stream};
  return call;
}

// Exceptions end at the border of C.
template <class Function>
int guarded(char* message, size_t message_bytes, Function function) {
  const auto report = [&](const char* what) {
    if (message != nullptr && message_bytes > 0) {
      const size_t length = std::min(std::strlen(what), message_bytes - 1);
      std::memcpy(message, what, length);
      message[length] = '\0';
    }
  };
  try {
    function();
    return 0;
  } catch (const InvalidArgument& error) {
    report(error.what());
    return 1;
  } catch (const Unsupported& error) {
    report(error.what());
    return 2;
  } catch (const std::exception& error) {
    report(error.what());
    return 3;
  }
}

}  // namespace
}  // namespace flashloom

int flashloom_attention_forward(const FlashloomAttention* call, char* message,
                                size_t message_bytes) {
  return flashloom::guarded(message, message_bytes, [&] {
    const flashloom::Call read = flashloom::read_call(call);
    flashloom::attention_forward(read.outputs, read.inputs, read.workspace, read.options,
                                 read.stream);
  });
}

int flashloom_attention_backward(const FlashloomAttention* call, char* message,
                                 size_t message_bytes) {
  return flashloom::guarded(message, message_bytes, [&] {
    const flashloom::Call read = flashloom::read_call(call);
    flashloom::attention_backward(read.gradients, read.inputs, read.saved, read.workspace,
                                  read.options, read.stream);
  });
}

int flashloom_attention_forward_workspace(const FlashloomAttention* call, size_t* bytes,
                                          char* message, size_t message_bytes) {
  return flashloom::guarded(message, message_bytes, [&] {
    const flashloom::Call read = flashloom::read_call(call);
    *bytes = static_cast<size_t>(
        flashloom::attention_forward_workspace_bytes(read.outputs, read.inputs, read.options));
  });
}

int flashloom_attention_backward_workspace(const FlashloomAttention* call, size_t* bytes,
                                           char* message, size_t message_bytes) {
  return flashloom::guarded(message, message_bytes, [&] {
    const flashloom::Call read = flashloom::read_call(call);
    *bytes = static_cast<size_t>(flashloom::attention_backward_workspace_bytes(
        read.gradients, read.inputs, read.saved, read.options));
  });
}
