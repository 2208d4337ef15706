#pragma once

#include <span>

#include "flashloom/ops/attention/portable/launch.cuh"
#include "flashloom/ops/attention/portable/reference_backward.cuh"

// The reference on tensors of a GPU. `rounding` is f64 for the reference itself.

namespace flashloom::portable {

inline ReferenceRows reference_rows(const ConstTensorView& view, bool packed) {
  ReferenceRows rows;
  if (view) {
    rows.data = const_cast<void*>(view.data);
    rows.dtype = view.dtype;
    rows.batch = packed ? 0 : view.stride(0);
    rows.head = view.stride(packed ? 0 : 1);
    rows.row = view.stride(packed ? 1 : 2);
  }
  return rows;
}

/// (B or 1, heads or 1), or a scalar.
inline ReferenceNumbers reference_numbers(const ConstTensorView& view) {
  ReferenceNumbers numbers;
  if (view) {
    numbers.data = view.data;
    numbers.dtype = view.dtype;
    numbers.sequence = view.rank < 2 || view.dim(0) == 1 ? 0 : view.stride(0);
    numbers.head = view.rank < 2 || view.dim(1) == 1 ? 0 : view.stride(1);
  }
  return numbers;
}

/// Workspace of the forward pass, in two parts: the gate's bitmap and three numbers a row.
struct ReferenceGateBytes {
  int64_t row_blocks = 0, words = 0, bitmap = 0, numbers = 0;

  ReferenceGateBytes(const GeometrySource& source, const AttentionGate& gate) {
    if (gate.kind == AttentionGate::Kind::none) {
      return;
    }
    const int64_t heads = int64_t{source.sequences} * source.heads;
    row_blocks = tile_count(source.max_query, gate.rows);
    words = tile_count(tile_count(source.max_key, gate.keys), 32);
    bitmap = (heads * row_blocks * words * 4 + 63) / 64 * 64;
    numbers = heads * source.max_query * 3 * static_cast<int64_t>(sizeof(double));
  }
};

inline ReferenceParams reference_params(const AttentionInputs& inputs,
                                        const AttentionOptions& options, DType rounding) {
  const bool packed = static_cast<bool>(options.sequences.cu_query);
  const bool packed_keys = static_cast<bool>(options.sequences.cu_key);
  ReferenceParams params;
  params.source = geometry_source(inputs, options);
  params.partial_count = options.blocks.bits ? static_cast<int32_t>(options.blocks.bits.dim(0)) : 0;
  params.head_dim = static_cast<int32_t>(inputs.q.dim(-1));
  params.value_dim = static_cast<int32_t>(inputs.v.dim(-1));
  params.q = reference_rows(inputs.q, packed);
  params.k = reference_rows(inputs.k, packed_keys);
  params.v = reference_rows(inputs.v, packed_keys);
  if (options.sequences.page_table) {
    params.page_table = static_cast<const int32_t*>(options.sequences.page_table.data);
    params.page_table_stride = options.sequences.page_table.stride(0);
    params.page_size = static_cast<int32_t>(options.sequences.page_size);
    params.page_count = static_cast<int32_t>(inputs.k.dim(0));
  }
  const AttentionScore& score = options.score;
  params.scale =
      score.scale != 0 ? score.scale : 1 / std::sqrt(static_cast<double>(params.head_dim));
  params.softcap = score.softcap;
  params.slopes = reference_numbers(score.alibi_slopes);
  if (score.alibi_slopes && score.alibi_slopes.rank == 1) {
    params.slopes.head = score.alibi_slopes.stride(0);
  }
  if (score.sinks) {
    params.sinks = reference_numbers(score.sinks);
    params.sinks.head = score.sinks.stride(0);
  }
  if (score.bias) {
    params.bias = reference_rows(score.bias, false);
    params.bias.batch = score.bias.dim(0) == 1 ? 0 : params.bias.batch;
    params.bias.head = score.bias.dim(1) == 1 ? 0 : params.bias.head;
    params.bias.row = score.bias.dim(2) == 1 ? 0 : params.bias.row;
  }
  const AttentionDropout& dropout = options.dropout;
  if (dropout.probability > 0) {
    params.drop = dropout.probability;
    params.drop_below = attention_dropout_threshold(dropout.probability);
    params.seed = static_cast<const uint64_t*>(dropout.seed.data);
    params.seed_offset = static_cast<const uint64_t*>(dropout.offset.data);
  }
  params.q_scale = reference_numbers(options.fp8.q_scale);
  params.k_scale = reference_numbers(options.fp8.k_scale);
  params.v_scale = reference_numbers(options.fp8.v_scale);
  params.out_scale = reference_numbers(options.fp8.out_scale);
  params.rounding = rounding;
  return params;
}

inline ReferenceGate reference_gate(const AttentionGate& gate, const GeometrySource& source,
                                    std::span<std::byte> workspace) {
  ReferenceGate plain;
  const ReferenceGateBytes bytes(source, gate);
  plain.kind = gate.kind;
  plain.rows = gate.rows;
  plain.keys = gate.keys;
  plain.threshold = static_cast<const float*>(gate.threshold.data);
  plain.threshold_head = gate.threshold.stride(0);
  plain.threshold_block = gate.threshold.stride(1);
  plain.threshold_count = gate.threshold.dim(1);
  if (gate.kept) {
    plain.kept = static_cast<uint32_t*>(gate.kept.data);
    plain.kept_sequence = gate.kept.stride(0);
    plain.kept_head = gate.kept.stride(1);
    plain.kept_block = gate.kept.stride(2);
    plain.kept_word = gate.kept.stride(3);
  }
  plain.dropped_mass = reference_rows(gate.dropped_mass, false);
  plain.row_blocks = static_cast<int32_t>(bytes.row_blocks);
  plain.words = static_cast<int32_t>(bytes.words);
  plain.bitmap = reinterpret_cast<uint32_t*>(workspace.data());
  plain.row_numbers = reinterpret_cast<double*>(workspace.data() + bytes.bitmap);
  return plain;
}

template <class Real>
void reference_forward(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                       std::span<std::byte> workspace, const AttentionOptions& options,
                       Stream stream, DType rounding) {
  ReferenceParams params = reference_params(inputs, options, rounding);
  const GeometrySource& source = params.source;
  const bool packed = source.cu_query != nullptr;
  params.out = reference_rows(outputs.out, packed);
  params.lse = reference_rows(outputs.lse, packed);
  params.entropy = reference_rows(outputs.entropy, packed);
  params.entropy_order = outputs.entropy_order;
  params.amax = static_cast<float*>(options.fp8.amax_out.data);
  const int64_t heads = int64_t{source.sequences} * source.heads;
  const dim3 rows(static_cast<unsigned>(heads * source.max_query));
  const auto real = static_cast<int>(sizeof(Real));
  launch(&attention_reference_clear_kernel<Real>, rows, kReferenceThreads, 0, params, stream,
         "attention_reference_clear_kernel");
  if (options.gate.kind != AttentionGate::Kind::none) {
    params.gate = reference_gate(options.gate, source, workspace);
    launch(&attention_reference_gate_kernel<Real>,
           dim3(static_cast<unsigned>(heads * params.gate.row_blocks)), kReferenceThreads,
           kReferenceThreads / 32 * params.head_dim * real, params, stream,
           "attention_reference_gate_kernel");
  }
  launch(&attention_reference_forward_kernel<Real>, rows, kReferenceThreads,
         (params.head_dim + params.value_dim) * real, params, stream,
         "attention_reference_forward_kernel");
}

template <class Real>
void reference_backward(const AttentionGradients& gradients, const AttentionInputs& inputs,
                        const AttentionSaved& saved, std::span<std::byte> workspace,
                        const AttentionOptions& options, Stream stream, DType rounding) {
  ReferenceParams params = reference_params(inputs, options, rounding);
  const GeometrySource& source = params.source;
  const bool packed = source.cu_query != nullptr;
  const bool packed_keys = source.cu_key != nullptr;
  params.out = reference_rows(saved.out, packed);
  params.dout = reference_rows(saved.dout, packed);
  params.lse = reference_rows(saved.lse, packed);
  params.entropy = reference_rows(saved.entropy, packed);
  params.dlse = reference_rows(saved.dlse, packed);
  params.dentropy = reference_rows(saved.dentropy, packed);
  params.entropy_order = saved.entropy_order;
  params.dq = reference_rows(gradients.dq, packed);
  params.dk = reference_rows(gradients.dk, packed_keys);
  params.dv = reference_rows(gradients.dv, packed_keys);
  params.accumulate = gradients.accumulate;
  params.row_numbers = workspace.data();
  const int64_t heads = int64_t{source.sequences} * source.heads;
  const dim3 queries(static_cast<unsigned>(heads * source.max_query));
  const dim3 keys(
      static_cast<unsigned>(int64_t{source.sequences} * source.key_heads * source.max_key));
  const int dims = params.head_dim + params.value_dim;
  const auto real = static_cast<int>(sizeof(Real));
  launch(&attention_reference_numbers_kernel<Real>, queries, kReferenceThreads, 0, params, stream,
         "attention_reference_numbers_kernel");
  launch(&attention_reference_query_gradient_kernel<Real>, queries, kReferenceThreads,
         (dims + params.head_dim) * real, params, stream,
         "attention_reference_query_gradient_kernel");
  launch(&attention_reference_key_gradient_kernel<Real>, keys, kReferenceThreads, 2 * dims * real,
         params, stream, "attention_reference_key_gradient_kernel");
  if (gradients.dsinks) {
    params.dsinks.data = gradients.dsinks.data;
    params.dsinks.dtype = gradients.dsinks.dtype;
    params.dsinks.row = gradients.dsinks.stride(0);
    launch(&attention_reference_sink_gradient_kernel<Real>,
           dim3(static_cast<unsigned>(source.heads)), kReferenceThreads, 0, params, stream,
           "attention_reference_sink_gradient_kernel");
  }
  if (gradients.dbias) {
    const TensorView& dbias = gradients.dbias;
    params.dbias = reference_rows(dbias, false);
    params.dbias_sequences = static_cast<int32_t>(dbias.dim(0));
    params.dbias_heads = static_cast<int32_t>(dbias.dim(1));
    params.dbias_rows = static_cast<int32_t>(dbias.dim(2));
    params.dbias_columns = static_cast<int32_t>(dbias.dim(3));
    launch(&attention_reference_bias_gradient_kernel<Real>,
           dim3(static_cast<unsigned>(tile_count(dbias.size(), kReferenceThreads / 32))),
           kReferenceThreads, 0, params, stream, "attention_reference_bias_gradient_kernel");
  }
}

}  // namespace flashloom::portable
