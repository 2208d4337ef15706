#include "flashloom/ops/attention/flashloom_attention.h"

#include <algorithm>
#include <cstddef>
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
static_assert(FLASHLOOM_E4M3 == static_cast<int>(DType::e4m3));
static_assert(FLASHLOOM_U8 == static_cast<int>(DType::u8));
static_assert(FLASHLOOM_I32 == static_cast<int>(DType::i32));
static_assert(FLASHLOOM_U64 == static_cast<int>(DType::u64));

// The first header ended before `entropy`. A hole in the struct would hold garbage of the caller
// that a later version took for a field.
constexpr size_t kFirstSize = offsetof(FlashloomAttention, entropy);
static_assert(sizeof(FlashloomTensor) == 112);
static_assert(kFirstSize == offsetof(FlashloomAttention, backend) + sizeof(int32_t));
static_assert(sizeof(FlashloomAttention) ==
              offsetof(FlashloomAttention, reserved) + sizeof(int32_t));

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

// A struct of any header's size in the layout of this one.
template <class Struct>
Struct read_struct(const Struct* source, size_t smallest) {
  if (source == nullptr) {
    throw InvalidArgument(kOp, "call", "a struct", "null");
  }
  const size_t size = source->size;
  check(size >= smallest, kOp, "size", std::to_string(smallest) + " or more", std::to_string(size));
  Struct copy = {};
  std::memcpy(&copy, source, std::min(size, sizeof(Struct)));
  const auto* bytes = reinterpret_cast<const unsigned char*>(source);
  check(size <= sizeof(Struct) || std::all_of(bytes + sizeof(Struct), bytes + size,
                                              [](unsigned char byte) { return byte == 0; }),
        kOp, "size", "zeros behind the " + std::to_string(sizeof(Struct)) + " bytes known here",
        "fields of a newer header");
  return copy;
}

Device device_of(int32_t kind, int32_t index) {
  check(kind == 0 || kind == 1, kOp, "device_kind", "0 (CPU) or 1 (CUDA)", std::to_string(kind));
  return {kind == 1 ? Device::Kind::cuda : Device::Kind::cpu, index};
}

void read_sequences(AttentionSequences& to, const FlashloomAttention& from, Device device) {
  to.cu_query = view_of(from.cu_query, device, "cu_query");
  to.cu_key = view_of(from.cu_key, device, "cu_key");
  to.used_query = view_of(from.used_query, device, "used_query");
  to.used_key = view_of(from.used_key, device, "used_key");
  to.page_table = view_of(from.page_table, device, "page_table");
  to.max_query = from.max_query;
  to.max_key = from.max_key;
  to.page_size = from.page_size;
}

void read_positions(AttentionPositions& to, const FlashloomAttention& from, Device device) {
  if (from.has_offset != 0) {
    to.offset = from.offset;
  }
  if (from.has_starts != 0) {
    to.query_start = from.query_start;
    to.key_start = from.key_start;
  }
  to.query = view_of(from.query_positions, device, "query_positions");
  to.key = view_of(from.key_positions, device, "key_positions");
  to.query_count = view_of(from.query_count, device, "query_count");
  to.key_count = view_of(from.key_count, device, "key_count");
  to.output_index = view_of(from.output_index, device, "output_index");
  to.query_bucket_offsets = view_of(from.query_bucket_offsets, device, "query_bucket_offsets");
  to.key_bucket_offsets = view_of(from.key_bucket_offsets, device, "key_bucket_offsets");
  to.exclude_self = from.exclude_self != 0;
}

void read_blocks(AttentionBlocks& to, const FlashloomAttention& from, Device device) {
  to.block_rows = from.block_rows;
  to.block_keys = from.block_keys;
  to.row_offsets = view_of(from.block_row_offsets, device, "block_row_offsets");
  to.columns = view_of(from.block_columns, device, "block_columns");
  to.partial = view_of(from.block_partial, device, "block_partial");
  to.bits = view_of(from.block_bits, device, "block_bits");
  to.column_offsets = view_of(from.block_column_offsets, device, "block_column_offsets");
  to.rows = view_of(from.block_transposed_rows, device, "block_transposed_rows");
  to.transposed_partial =
      view_of(from.block_transposed_partial, device, "block_transposed_partial");
}

void read_gate(AttentionGate& to, const FlashloomAttention& from, Device device) {
  check(
      from.gate_kind >= 0 && from.gate_kind <= static_cast<int32_t>(AttentionGate::Kind::relative),
      kOp, "gate_kind", "0 to 2", std::to_string(from.gate_kind));
  to.kind = static_cast<AttentionGate::Kind>(from.gate_kind);
  to.threshold = view_of(from.gate_threshold, device, "gate_threshold");
  to.rows = from.gate_rows != 0 ? from.gate_rows : to.rows;
  to.keys = from.gate_keys != 0 ? from.gate_keys : to.keys;
  to.kept = view_of(from.gate_kept, device, "gate_kept");
  to.dropped_mass = view_of(from.gate_dropped_mass, device, "gate_dropped_mass");
}

AttentionOptions read_options(const FlashloomAttention& from, Device device) {
  AttentionOptions options;
  read_sequences(options.sequences, from, device);
  options.visibility = {from.left, from.right};
  read_positions(options.positions, from, device);
  read_blocks(options.blocks, from, device);
  read_gate(options.gate, from, device);
  options.score.scale = from.scale;
  options.score.softcap = from.softcap;
  options.score.alibi_slopes = view_of(from.alibi_slopes, device, "alibi_slopes");
  options.score.bias = view_of(from.bias, device, "bias");
  options.score.sinks = view_of(from.sinks, device, "sinks");
  options.dropout.probability = from.dropout_probability;
  options.dropout.seed = view_of(from.dropout_seed, device, "dropout_seed");
  options.dropout.offset = view_of(from.dropout_offset, device, "dropout_offset");
  options.fp8.q_scale = view_of(from.q_scale, device, "q_scale");
  options.fp8.k_scale = view_of(from.k_scale, device, "k_scale");
  options.fp8.v_scale = view_of(from.v_scale, device, "v_scale");
  options.fp8.out_scale = view_of(from.out_scale, device, "out_scale");
  options.fp8.amax_out = view_of(from.amax_out, device, "amax_out");
  check(from.backend >= 0 && from.backend <= static_cast<int32_t>(AttentionBackend::sm90), kOp,
        "backend", "0 to 4", std::to_string(from.backend));
  AttentionExecution& execution = options.execution;
  execution.deterministic = from.deterministic != 0;
  execution.splits = from.splits;
  execution.multiprocessor_share =
      from.multiprocessor_share != 0 ? from.multiprocessor_share : execution.multiprocessor_share;
  execution.backend = static_cast<AttentionBackend>(from.backend);
  execution.status = view_of(from.status, device, "status");
  return options;
}

Call read_call(const FlashloomAttention* source) {
  const FlashloomAttention from = read_struct(source, kFirstSize);
  const Device device = device_of(from.device_kind, from.device_index);
  Call call;
  call.inputs = {view_of(from.q, device, "q"), view_of(from.k, device, "k"),
                 view_of(from.v, device, "v")};
  call.outputs.out = view_of(from.out, device, "out");
  call.outputs.lse = view_of(from.lse, device, "lse");
  call.outputs.entropy = view_of(from.entropy, device, "entropy");
  call.outputs.entropy_order = from.entropy_order != 0 ? from.entropy_order : 1;
  call.saved.out = call.outputs.out;
  call.saved.lse = call.outputs.lse;
  call.saved.entropy = call.outputs.entropy;
  call.saved.entropy_order = call.outputs.entropy_order;
  call.saved.dout = view_of(from.dout, device, "dout");
  call.saved.dlse = view_of(from.dlse, device, "dlse");
  call.saved.dentropy = view_of(from.dentropy, device, "dentropy");
  call.gradients.dq = view_of(from.dq, device, "dq");
  call.gradients.dk = view_of(from.dk, device, "dk");
  call.gradients.dv = view_of(from.dv, device, "dv");
  call.gradients.dsinks = view_of(from.dsinks, device, "dsinks");
  call.gradients.dbias = view_of(from.dbias, device, "dbias");
  call.gradients.accumulate = from.accumulate != 0;
  call.options = read_options(from, device);
  call.workspace = {static_cast<std::byte*>(from.workspace), from.workspace_bytes};
  call.stream = {from.stream};
  return call;
}

void copy_message(const char* what, char* message, size_t message_bytes) {
  if (message != nullptr && message_bytes > 0) {
    const size_t length = std::min(std::strlen(what), message_bytes - 1);
    std::memcpy(message, what, length);
    message[length] = '\0';
  }
}

// Exceptions end at the border of C.
template <class Function>
int guarded(char* message, size_t message_bytes, Function function) {
  try {
    function();
    return 0;
  } catch (const InvalidArgument& error) {
    copy_message(error.what(), message, message_bytes);
    return 1;
  } catch (const Unsupported& error) {
    copy_message(error.what(), message, message_bytes);
    return 2;
  } catch (const std::exception& error) {
    copy_message(error.what(), message, message_bytes);
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

int flashloom_attention_merge(const FlashloomAttentionMerge* call, char* message,
                              size_t message_bytes) {
  return flashloom::guarded(message, message_bytes, [&] {
    using flashloom::view_of;
    const FlashloomAttentionMerge from =
        flashloom::read_struct(call, sizeof(FlashloomAttentionMerge));
    const flashloom::Device device = flashloom::device_of(from.device_kind, from.device_index);
    flashloom::attention_merge(
        view_of(from.out, device, "out"), view_of(from.lse, device, "lse"),
        view_of(from.parts, device, "parts"), view_of(from.part_lse, device, "part_lse"),
        view_of(from.sinks, device, "sinks"), flashloom::Stream{from.stream});
  });
}

int flashloom_attention_forward_backend(const FlashloomAttention* call, int32_t* backend,
                                        char* message, size_t message_bytes) {
  return flashloom::guarded(message, message_bytes, [&] {
    const flashloom::Call read = flashloom::read_call(call);
    const flashloom::AttentionChoice choice =
        flashloom::attention_forward_backend(read.outputs, read.inputs, read.options);
    *backend = static_cast<int32_t>(choice.backend);
    flashloom::copy_message(choice.reason.c_str(), message, message_bytes);
  });
}

int flashloom_attention_backward_backend(const FlashloomAttention* call, int32_t* backend,
                                         char* message, size_t message_bytes) {
  return flashloom::guarded(message, message_bytes, [&] {
    const flashloom::Call read = flashloom::read_call(call);
    const flashloom::AttentionChoice choice = flashloom::attention_backward_backend(
        read.gradients, read.inputs, read.saved, read.options);
    *backend = static_cast<int32_t>(choice.backend);
    flashloom::copy_message(choice.reason.c_str(), message, message_bytes);
  });
}

int flashloom_attention_check(const FlashloomAttention* call, char* message, size_t message_bytes) {
  return flashloom::guarded(message, message_bytes, [&] {
    const flashloom::Call read = flashloom::read_call(call);
    flashloom::attention_check(read.options, read.stream);
  });
}
