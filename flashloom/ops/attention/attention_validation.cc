#include "flashloom/ops/attention/attention_validation.h"

#include <fmt/format.h>

#include <cmath>

#include "flashloom/core/check.h"
#include "flashloom/core/parallel.h"
#include "flashloom/ops/attention/patterns/head_geometry.h"

namespace flashloom {
namespace {

constexpr std::string_view kForward = "attention_forward";
constexpr std::string_view kBackward = "attention_backward";
constexpr std::string_view kMerge = "attention_merge";

// Sizes that the q, k and v of a valid call agree on.
struct Sizes {
  bool packed, packed_keys, paged;
  int64_t batch, heads, key_heads, max_query, max_key;
  int64_t query_rows, key_rows;  // of the tensors: S or T
  int64_t head_dim, value_dim;
};

void expect(bool ok, std::string_view op, std::string_view argument, std::string_view expected,
            const ConstTensorView& actual) {
  if (!ok) {
    throw InvalidArgument(op, argument, expected, describe(actual));
  }
}

void expect_value(bool ok, std::string_view op, std::string_view argument,
                  std::string_view expected, double actual) {
  if (!ok) {
    throw InvalidArgument(op, argument, expected, fmt::format("{}", actual));
  }
}

void check_storage(std::string_view op, std::string_view name, const ConstTensorView& view,
                   const Device& device, bool fp8) {
  if (fp8) {
    check_dtype(op, name, view, {DType::f32, DType::bf16, DType::f16, DType::f64, DType::e4m3});
  } else {
    check_dtype(op, name, view, {DType::f32, DType::bf16, DType::f16, DType::f64});
  }
  check_last_contiguous(op, name, view);
  expect(view.device == device, op, name, "a tensor on the device of q", view);
}

// A tensor of rows: (B, heads, S) or (heads, T), and the width behind it unless 0.
void check_rows(std::string_view op, std::string_view name, const ConstTensorView& view,
                bool packed, int64_t batch, int64_t heads, int64_t rows, int64_t width) {
  if (packed && width > 0) {
    check_shape(op, name, view, {heads, rows, width});
  } else if (packed) {
    check_shape(op, name, view, {heads, rows});
  } else if (width > 0) {
    check_shape(op, name, view, {batch, heads, rows, width});
  } else {
    check_shape(op, name, view, {batch, heads, rows});
  }
}

void check_index(std::string_view op, std::string_view name, const ConstTensorView& view) {
  check_dtype(op, name, view, {DType::i32});
  check_last_contiguous(op, name, view);
}

Sizes check_inputs(std::string_view op, const AttentionInputs& inputs,
                   const AttentionOptions& options) {
  const AttentionSequences& sequences = options.sequences;
  Sizes sizes = {};
  sizes.packed = static_cast<bool>(sequences.cu_query);
  sizes.packed_keys = static_cast<bool>(sequences.cu_key);
  sizes.paged = static_cast<bool>(sequences.page_table);
  const auto& [q, k, v] = inputs;
  expect(q.rank == (sizes.packed ? 3 : 4), op, "q",
         sizes.packed ? "shape (H, T_q, D)" : "shape (B, H, S_q, D)", q);
  expect(
      k.rank == (sizes.packed_keys ? 3 : 4), op, "k",
      sizes.packed_keys ? "shape (G, T_k, D)" : "shape (B, G, S_k, D), or (pages, G, page_size, D)",
      k);
  expect(v.rank == k.rank, op, "v", "the rank of k", v);
  check(!(sizes.packed_keys && sizes.paged), op, "page_table", "paged or packed keys", "both");
  check(sizes.packed_keys || sizes.paged || !sizes.packed, op, "cu_key",
        "cu_key or a page table with cu_query", "neither");
  check(sizes.packed || !sizes.packed_keys, op, "cu_query", "cu_query with cu_key", "nothing");
  sizes.batch = sizes.packed ? sequences.cu_query.size() - 1 : q.dim(0);
  sizes.heads = q.dim(sizes.packed ? 0 : 1);
  sizes.query_rows = q.dim(-2);
  sizes.head_dim = q.dim(-1);
  sizes.key_heads = k.dim(sizes.packed_keys ? 0 : 1);
  sizes.key_rows = k.dim(-2);
  sizes.value_dim = v.dim(-1);
  sizes.max_query = sizes.packed ? sequences.max_query : sizes.query_rows;
  sizes.max_key = sizes.packed_keys || sizes.paged ? sequences.max_key : sizes.key_rows;
  check_storage(op, "q", q, q.device, true);
  check_storage(op, "k", k, q.device, true);
  check_storage(op, "v", v, q.device, true);
  expect(sizes.head_dim > 0, op, "q", "a head dimension above 0", q);
  expect(sizes.value_dim > 0, op, "v", "a value dimension above 0", v);
  expect(k.dim(-1) == sizes.head_dim, op, "k", "the head dimension of q", k);
  expect(sizes.key_heads > 0 ? sizes.heads % sizes.key_heads == 0 : sizes.heads == 0, op, "k",
         fmt::format("heads that divide the {} of q", sizes.heads), k);
  for (int i = 0; i < k.rank - 1; ++i) {
    expect(v.dim(i) == k.dim(i), op, "v", "the shape of k but for the last dimension", v);
  }
  expect(sizes.packed_keys || sizes.paged || k.dim(0) == sizes.batch, op, "k",
         fmt::format("{} sequences", sizes.batch), k);
  const auto bound = [&](std::string_view name, int64_t value) {
    expect_value(value >= 0 && value < kMaxSequence, op, name, "a length in [0, 2^30)",
                 static_cast<double>(value));
  };
  bound("max_query", sizes.max_query);
  bound("max_key", sizes.max_key);
  bound("T_q", sizes.query_rows);
  bound("T_k", sizes.key_rows);
  return sizes;
}

void check_sequences(std::string_view op, const AttentionSequences& sequences,
                     const AttentionInputs& inputs, const Sizes& sizes) {
  const auto lengths = [&](std::string_view name, const ConstTensorView& view, int64_t count) {
    if (view) {
      check_index(op, name, view);
      check_shape(op, name, view, {count});
      check_contiguous(op, name, view);
    }
  };
  lengths("cu_query", sequences.cu_query, sizes.batch + 1);
  lengths("cu_key", sequences.cu_key, sizes.batch + 1);
  lengths("used_query", sequences.used_query, sizes.batch);
  lengths("used_key", sequences.used_key, sizes.batch);
  if (sizes.packed) {
    expect(sizes.batch >= 0, op, "cu_query", "at least one entry", sequences.cu_query);
  }
  if (sizes.paged) {
    check_index(op, "page_table", sequences.page_table);
    expect(sequences.page_size > 0 && sequences.page_size == inputs.k.dim(2), op, "page_size",
           fmt::format("{}, the rows of a page of k", inputs.k.dim(2)), sequences.page_table);
    expect(sequences.page_table.rank == 2 && sequences.page_table.dim(0) == sizes.batch &&
               sequences.page_table.dim(1) >= tile_count(sizes.max_key, sequences.page_size),
           op, "page_table",
           fmt::format("shape ({}, {} or more)", sizes.batch,
                       tile_count(sizes.max_key, sequences.page_size)),
           sequences.page_table);
  }
}

void check_positions(std::string_view op, const AttentionOptions& options, const Sizes& sizes) {
  const AttentionPositions& positions = options.positions;
  expect_value(options.visibility.left >= -1, op, "left", "-1 or more",
               static_cast<double>(options.visibility.left));
  expect_value(options.visibility.right >= -1, op, "right", "-1 or more",
               static_cast<double>(options.visibility.right));
  check(positions.query_start.has_value() == positions.key_start.has_value(), op, "key_start",
        "query_start and key_start together", "one");
  check(!positions.offset || !positions.query_start, op, "offset", "an offset or starts", "both");
  const auto rows = [&](std::string_view name, const ConstTensorView& view, bool packed,
                        int64_t heads, int64_t count) {
    if (view) {
      check_index(op, name, view);
      check_rows(op, name, view, packed, sizes.batch, heads, count, 0);
    }
  };
  rows("positions.query", positions.query, sizes.packed, sizes.heads, sizes.query_rows);
  rows("positions.key", positions.key, sizes.packed_keys, sizes.key_heads,
       sizes.paged ? sizes.max_key : sizes.key_rows);
  rows("output_index", positions.output_index, sizes.packed, sizes.heads, sizes.query_rows);
  const auto table = [&](std::string_view name, const ConstTensorView& view, int64_t heads,
                         int rank) {
    if (view) {
      check_index(op, name, view);
      expect(view.rank == rank && view.dim(0) == sizes.batch && view.dim(1) == heads, op, name,
             fmt::format("shape ({}, {}{})", sizes.batch, heads, rank == 3 ? ", any" : ""), view);
    }
  };
  table("query_count", positions.query_count, sizes.heads, 2);
  table("key_count", positions.key_count, sizes.key_heads, 2);
  table("query_bucket_offsets", positions.query_bucket_offsets, sizes.heads, 3);
  table("key_bucket_offsets", positions.key_bucket_offsets, sizes.key_heads, 3);
  const ConstTensorView& query_buckets = positions.query_bucket_offsets;
  const ConstTensorView& key_buckets = positions.key_bucket_offsets;
  check(static_cast<bool>(query_buckets) == static_cast<bool>(key_buckets), op,
        "key_bucket_offsets", "bucket offsets of queries and keys", "one of them");
  if (query_buckets) {
    expect(query_buckets.dim(2) >= 2 && key_buckets.dim(2) == query_buckets.dim(2), op,
           "key_bucket_offsets", "as many buckets as the queries have, at least one", key_buckets);
    check(options.blocks.block_rows == 0, op, "blocks", "a block mask or buckets", "both");
  }
}

void check_blocks(std::string_view op, const AttentionBlocks& blocks, const Sizes& sizes,
                  bool backward) {
  if (blocks.block_rows == 0 && blocks.block_keys == 0) {
    expect(!blocks.row_offsets, op, "block_rows", "the size of a block", blocks.row_offsets);
    return;
  }
  expect_value(blocks.block_rows > 0 && blocks.block_rows < kMaxSequence, op, "block_rows",
               "1 or more", static_cast<double>(blocks.block_rows));
  expect_value(blocks.block_keys > 0 && blocks.block_keys < kMaxSequence, op, "block_keys",
               "1 or more", static_cast<double>(blocks.block_keys));
  const auto list = [&](std::string_view name, const ConstTensorView& view, int64_t width) {
    check_index(op, name, view);
    expect(view.rank == 3 && (view.dim(0) == 1 || view.dim(0) == sizes.batch) &&
               (view.dim(1) == 1 || view.dim(1) == sizes.heads) &&
               (width < 0 || view.dim(2) == width),
           op, name,
           fmt::format("shape ({} or 1, {} or 1, {})", sizes.batch, sizes.heads,
                       width < 0 ? "any" : fmt::format("{}", width)),
           view);
  };
  list("row_offsets", blocks.row_offsets, tile_count(sizes.max_query, blocks.block_rows) + 1);
  list("columns", blocks.columns, -1);
  const int64_t entries = blocks.columns.dim(2);
  if (blocks.partial) {
    list("partial", blocks.partial, entries);
    expect_value(blocks.block_keys % 8 == 0, op, "block_keys",
                 "a multiple of 8 with partial blocks", static_cast<double>(blocks.block_keys));
    check_dtype(op, "bits", blocks.bits, {DType::u8});
    check_shape(op, "bits", blocks.bits, {kAnySize, blocks.block_rows, blocks.block_keys / 8});
    check_contiguous(op, "bits", blocks.bits);
  }
  if (backward || blocks.column_offsets) {
    list("column_offsets", blocks.column_offsets, tile_count(sizes.max_key, blocks.block_keys) + 1);
    list("rows", blocks.rows, entries);
    if (blocks.partial) {
      list("transposed_partial", blocks.transposed_partial, entries);
    }
  }
}

void check_gate(std::string_view op, const AttentionGate& gate, const Sizes& sizes) {
  if (gate.kind == AttentionGate::Kind::none) {
    return;
  }
  expect_value(gate.rows > 0, op, "gate.rows", "1 or more", static_cast<double>(gate.rows));
  expect_value(gate.keys > 0, op, "gate.keys", "1 or more", static_cast<double>(gate.keys));
  check_dtype(op, "gate.threshold", gate.threshold, {DType::f32});
  expect(
      gate.threshold.rank == 2 && gate.threshold.dim(0) == sizes.heads && gate.threshold.dim(1) > 0,
      op, "gate.threshold", fmt::format("shape ({}, 1 or more)", sizes.heads), gate.threshold);
  if (gate.kept) {
    check_dtype(op, "gate.kept", gate.kept, {DType::i32});
    check_shape(op, "gate.kept", gate.kept,
                {sizes.batch, sizes.heads, tile_count(sizes.max_query, gate.rows),
                 tile_count(tile_count(sizes.max_key, gate.keys), 32)});
  }
  if (gate.dropped_mass) {
    check_dtype(op, "gate.dropped_mass", gate.dropped_mass, {DType::f32});
    check_shape(op, "gate.dropped_mass", gate.dropped_mass,
                {sizes.batch, sizes.heads, sizes.max_query});
  }
}

void check_bias(std::string_view op, std::string_view name, const ConstTensorView& bias,
                const Sizes& sizes) {
  check_last_contiguous(op, name, bias);
  expect(bias.rank == 4 && (bias.dim(0) == 1 || bias.dim(0) == sizes.batch) &&
             (bias.dim(1) == 1 || bias.dim(1) == sizes.heads) &&
             (bias.dim(2) == 1 || bias.dim(2) == sizes.max_query) && bias.dim(3) == sizes.max_key,
         op, name,
         fmt::format("shape ({} or 1, {} or 1, {} or 1, {})", sizes.batch, sizes.heads,
                     sizes.max_query, sizes.max_key),
         bias);
}

void check_score(std::string_view op, const AttentionOptions& options, const Sizes& sizes) {
  const AttentionScore& score = options.score;
  expect_value(std::isfinite(score.scale), op, "scale", "a finite number", score.scale);
  expect_value(std::isfinite(score.softcap) && score.softcap >= 0, op, "softcap",
               "0 or a positive number", score.softcap);
  if (score.alibi_slopes) {
    const ConstTensorView& slopes = score.alibi_slopes;
    check_dtype(op, "alibi_slopes", slopes, {DType::f32, DType::f64});
    expect((slopes.rank == 1 && slopes.dim(0) == sizes.heads) ||
               (slopes.rank == 2 && slopes.dim(0) == sizes.batch && slopes.dim(1) == sizes.heads),
           op, "alibi_slopes", "shape (H) or (B, H)", slopes);
  }
  if (score.bias) {
    check_storage(op, "bias", score.bias, score.bias.device, false);
    check_bias(op, "bias", score.bias, sizes);
  }
  if (score.sinks) {
    check_dtype(op, "sinks", score.sinks, {DType::f32, DType::f64});
    check_shape(op, "sinks", score.sinks, {sizes.heads});
  }
  const AttentionDropout& dropout = options.dropout;
  expect_value(dropout.probability >= 0 && dropout.probability < 1, op, "dropout.probability",
               "a number in [0, 1)", dropout.probability);
  if (dropout.probability > 0) {
    check_dtype(op, "dropout.seed", dropout.seed, {DType::u64});
    check_shape(op, "dropout.seed", dropout.seed, {1});
    if (dropout.offset) {
      check_dtype(op, "dropout.offset", dropout.offset, {DType::u64});
      check_shape(op, "dropout.offset", dropout.offset, {1});
    }
  }
}

void check_fp8(std::string_view op, const AttentionFp8& fp8, const Sizes& sizes) {
  const auto scale = [&](std::string_view name, const ConstTensorView& view, int64_t heads) {
    if (!view) {
      return;
    }
    check_dtype(op, name, view, {DType::f32});
    expect(view.rank < 2 ? view.size() == 1
                         : view.rank == 2 && (view.dim(0) == 1 || view.dim(0) == sizes.batch) &&
                               (view.dim(1) == 1 || view.dim(1) == heads),
           op, name, fmt::format("shape (1) or ({} or 1, {} or 1)", sizes.batch, heads), view);
  };
  scale("q_scale", fp8.q_scale, sizes.heads);
  scale("k_scale", fp8.k_scale, sizes.key_heads);
  scale("v_scale", fp8.v_scale, sizes.key_heads);
  scale("out_scale", fp8.out_scale, sizes.heads);
  if (fp8.amax_out) {
    check_dtype(op, "amax_out", fp8.amax_out, {DType::f32});
    check_shape(op, "amax_out", fp8.amax_out, {1});
  }
}

void check_order(std::string_view op, float order) {
  expect_value(std::isfinite(order) && order > 0, op, "entropy_order", "a positive number", order);
}

void check_row_scalars(std::string_view op, std::string_view name, const ConstTensorView& view,
                       const Sizes& sizes) {
  if (view) {
    check_dtype(op, name, view, {DType::f32, DType::f64});
    check_rows(op, name, view, sizes.packed, sizes.batch, sizes.heads, sizes.query_rows, 0);
  }
}

Sizes check_common(std::string_view op, const AttentionInputs& inputs,
                   const AttentionOptions& options, bool backward) {
  const Sizes sizes = check_inputs(op, inputs, options);
  check_sequences(op, options.sequences, inputs, sizes);
  check_positions(op, options, sizes);
  check_blocks(op, options.blocks, sizes, backward);
  check_gate(op, options.gate, sizes);
  check_score(op, options, sizes);
  check_fp8(op, options.fp8, sizes);
  expect_value(options.execution.splits >= 0, op, "splits", "0 or more", options.execution.splits);
  return sizes;
}

}  // namespace

void validate_attention_forward(const AttentionOutputs& outputs, const AttentionInputs& inputs,
                                const AttentionOptions& options) {
  const Sizes sizes = check_common(kForward, inputs, options, false);
  check_rows(kForward, "out", outputs.out, sizes.packed, sizes.batch, sizes.heads, sizes.query_rows,
             sizes.value_dim);
  check_storage(kForward, "out", outputs.out, inputs.q.device, true);
  check_row_scalars(kForward, "lse", outputs.lse, sizes);
  check_row_scalars(kForward, "entropy", outputs.entropy, sizes);
  check_order(kForward, outputs.entropy_order);
}

void validate_attention_backward(const AttentionGradients& gradients, const AttentionInputs& inputs,
                                 const AttentionSaved& saved, const AttentionOptions& options) {
  const Sizes sizes = check_common(kBackward, inputs, options, true);
  check(options.gate.kind == AttentionGate::Kind::none, kBackward, "gate",
        "no gate: it has no gradient", "a gate");
  check(!sizes.paged, kBackward, "page_table", "keys without pages", "a page table");
  check_rows(kBackward, "dq", gradients.dq, sizes.packed, sizes.batch, sizes.heads,
             sizes.query_rows, sizes.head_dim);
  check_rows(kBackward, "dk", gradients.dk, sizes.packed_keys, sizes.batch, sizes.key_heads,
             sizes.key_rows, sizes.head_dim);
  check_rows(kBackward, "dv", gradients.dv, sizes.packed_keys, sizes.batch, sizes.key_heads,
             sizes.key_rows, sizes.value_dim);
  const std::pair<std::string_view, const TensorView*> results[] = {
      {"dq", &gradients.dq}, {"dk", &gradients.dk}, {"dv", &gradients.dv}};
  for (const auto& [name, view] : results) {
    check_storage(kBackward, name, *view, inputs.q.device, false);
    if (gradients.accumulate) {
      check_dtype(kBackward, name, *view, {DType::f32, DType::f64});
    }
  }
  check_rows(kBackward, "out", saved.out, sizes.packed, sizes.batch, sizes.heads, sizes.query_rows,
             sizes.value_dim);
  check_rows(kBackward, "dout", saved.dout, sizes.packed, sizes.batch, sizes.heads,
             sizes.query_rows, sizes.value_dim);
  check_storage(kBackward, "out", saved.out, inputs.q.device, false);
  check_storage(kBackward, "dout", saved.dout, inputs.q.device, false);
  check(static_cast<bool>(saved.lse), kBackward, "lse", "the lse of the forward pass", "nothing");
  check_row_scalars(kBackward, "lse", saved.lse, sizes);
  check_row_scalars(kBackward, "entropy", saved.entropy, sizes);
  check_row_scalars(kBackward, "dlse", saved.dlse, sizes);
  check_row_scalars(kBackward, "dentropy", saved.dentropy, sizes);
  check(!saved.dentropy || saved.entropy, kBackward, "entropy",
        "the entropy of the forward pass with dentropy", "nothing");
  check_order(kBackward, saved.entropy_order);
  if (gradients.dsinks) {
    check(static_cast<bool>(options.score.sinks), kBackward, "dsinks", "sinks with dsinks",
          "no sinks");
    check_dtype(kBackward, "dsinks", gradients.dsinks, {DType::f32, DType::f64});
    check_shape(kBackward, "dsinks", gradients.dsinks, {sizes.heads});
  }
  if (gradients.dbias) {
    check(static_cast<bool>(options.score.bias), kBackward, "dbias", "a bias with dbias",
          "no bias");
    check_dtype(kBackward, "dbias", gradients.dbias, {DType::f32, DType::f64});
    check_bias(kBackward, "dbias", gradients.dbias, sizes);
    for (int i = 0; i < 4; ++i) {
      expect(gradients.dbias.dim(i) == options.score.bias.dim(i), kBackward, "dbias",
             "the shape of bias", gradients.dbias);
    }
  }
}

void validate_attention_merge(const TensorView& out, const TensorView& lse,
                              const ConstTensorView& parts, const ConstTensorView& part_lse,
                              const ConstTensorView& sinks) {
  expect(out.rank == 3 || out.rank == 4, kMerge, "out", "shape (B, H, S, E) or (H, T, E)", out);
  check_storage(kMerge, "out", out, out.device, false);
  check_dtype(kMerge, "parts", parts, {DType::f32, DType::f64});
  check_dtype(kMerge, "part_lse", part_lse, {DType::f32, DType::f64});
  check_last_contiguous(kMerge, "parts", parts);
  expect(parts.rank == out.rank + 1, kMerge, "parts", "the rank of out and one", parts);
  expect(part_lse.rank == out.rank, kMerge, "part_lse", "the rank of out", part_lse);
  expect(part_lse.dim(0) == parts.dim(0), kMerge, "part_lse", fmt::format("{} parts", parts.dim(0)),
         part_lse);
  for (int i = 0; i < out.rank; ++i) {
    expect(parts.dim(i + 1) == out.dim(i), kMerge, "parts", "the shape of out behind the parts",
           parts);
    expect(i == out.rank - 1 || part_lse.dim(i + 1) == out.dim(i), kMerge, "part_lse",
           "the shape of out without its width", part_lse);
    expect(!lse || i == out.rank - 1 || (lse.rank == out.rank - 1 && lse.dim(i) == out.dim(i)),
           kMerge, "lse", "the shape of out without its width", lse);
  }
  if (lse) {
    check_dtype(kMerge, "lse", lse, {DType::f32, DType::f64});
  }
  if (sinks) {
    check_dtype(kMerge, "sinks", sinks, {DType::f32, DType::f64});
    check_shape(kMerge, "sinks", sinks, {out.dim(-3)});
  }
}

}  // namespace flashloom
