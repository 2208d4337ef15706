#pragma once

#include "flashloom/ops/attention/attention.h"

namespace flashloom {

/// Calls visit(view, whether the call writes it) for every tensor that `options` names, absent ones
/// too: what moves to another memory with a call beside its inputs and outputs.
template <class Visit>
void for_each_option_view(AttentionOptions& options, const Visit& visit) {
  for (ConstTensorView* view : {&options.sequences.cu_query,
                                &options.sequences.cu_key,
                                &options.sequences.used_query,
                                &options.sequences.used_key,
                                &options.sequences.page_table,
                                &options.positions.query,
                                &options.positions.key,
                                &options.positions.query_count,
                                &options.positions.key_count,
                                &options.positions.output_index,
                                &options.positions.query_bucket_offsets,
                                &options.positions.key_bucket_offsets,
                                &options.blocks.row_offsets,
                                &options.blocks.columns,
                                &options.blocks.partial,
                                &options.blocks.bits,
                                &options.blocks.column_offsets,
                                &options.blocks.rows,
                                &options.blocks.transposed_partial,
                                &options.gate.threshold,
                                &options.score.alibi_slopes,
                                &options.score.bias,
                                &options.score.sinks,
                                &options.dropout.seed,
                                &options.dropout.offset,
                                &options.fp8.q_scale,
                                &options.fp8.k_scale,
                                &options.fp8.v_scale,
                                &options.fp8.out_scale}) {
    visit(*view, false);
  }
  for (TensorView* view : {&options.gate.kept, &options.gate.dropped_mass, &options.fp8.amax_out,
                           &options.execution.status}) {
    visit(*view, true);
  }
}

}  // namespace flashloom
