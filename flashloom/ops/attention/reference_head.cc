#include "flashloom/ops/attention/reference_head.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "flashloom/ops/attention/attention_dropout.h"
#include "flashloom/ops/attention/attention_rows.h"
#include "flashloom/ops/attention/fp8_storage.h"

namespace flashloom {
namespace {

double scale_of(const ConstTensorView& view, int64_t sequence, int64_t head) {
  if (!view) {
    return 1;
  }
  if (view.rank < 2) {
    return load_element(view.data, view.dtype, 0);
  }
  const ConstTensorView one = broadcast_head(view, sequence, head);
  return load_element(one.data, one.dtype, 0);
}

std::vector<double> load_rows(const ConstTensorView& rows, int64_t count, double scale) {
  const int64_t width = rows.dim(1);
  std::vector<double> values(static_cast<size_t>(count * width));
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t d = 0; d < width; ++d) {
      values[static_cast<size_t>(i * width + d)] =
          scale * load_element(rows.data, rows.dtype, i * rows.stride(0) + d);
    }
  }
  return values;
}

std::vector<double> load_keys(const ConstTensorView& view, const AttentionSequences& sequences,
                              int64_t sequence, int64_t key_head, int64_t first, int64_t count,
                              double scale) {
  if (!sequences.page_table) {
    return load_rows(
        attention_head_rows(view, static_cast<bool>(sequences.cu_key), sequence, key_head, first),
        count, scale);
  }
  const auto* pages = static_cast<const int32_t*>(sequences.page_table.data) +
                      sequence * sequences.page_table.stride(0);
  std::vector<double> values;
  for (int64_t j = 0; j < count; j += sequences.page_size) {
    const ConstTensorView page = view.select(0, pages[j / sequences.page_size]).select(0, key_head);
    const std::vector<double> part =
        load_rows(page, std::min(sequences.page_size, count - j), scale);
    values.insert(values.end(), part.begin(), part.end());
  }
  return values;
}

}  // namespace

double load_element(const void* data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::f64:
      return static_cast<const double*>(data)[index];
    case DType::bf16:
      return static_cast<float>(static_cast<const bf16*>(data)[index]);
    case DType::f16:
      return static_cast<float>(static_cast<const f16*>(data)[index]);
    case DType::e4m3:
      return e4m3_to_float(static_cast<const uint8_t*>(data)[index]);
    default:
      return static_cast<const float*>(data)[index];
  }
}

void store_element(void* data, DType dtype, int64_t index, double value) {
  const auto single = static_cast<float>(value);
  switch (dtype) {
    case DType::f64:
      static_cast<double*>(data)[index] = value;
      return;
    case DType::bf16:
      static_cast<bf16*>(data)[index] = bf16(single);
      return;
    case DType::f16:
      static_cast<f16*>(data)[index] = f16(single);
      return;
    case DType::e4m3:
      static_cast<uint8_t*>(data)[index] = e4m3_from_float(single);
      return;
    default:
      static_cast<float*>(data)[index] = single;
  }
}

ReferenceHead::ReferenceHead(const AttentionInputs& inputs, const AttentionOptions& options,
                             const GeometrySource& source, int32_t sequence, int32_t head)
    : rows_(resolve_rows(source, sequence)),
      geometry_(resolve_head(source, rows_, sequence, head)),
      sequence_(sequence),
      head_(head),
      head_dim_(inputs.q.dim(-1)),
      value_dim_(inputs.v.dim(-1)),
      softcap_(options.score.softcap),
      dropout_(options.dropout.probability),
      output_index_(source.output_index.at(sequence, head)) {
  const int64_t key_head = head / (source.heads / source.key_heads);
  if (output_index_ != nullptr) {
    output_index_ += rows_.query_first;
  }
  q_ = load_rows(
      attention_head_rows(inputs.q, source.cu_query != nullptr, sequence, head, rows_.query_first),
      queries(), scale_of(options.fp8.q_scale, sequence, head));
  k_ = load_keys(inputs.k, options.sequences, sequence, key_head, rows_.key_first, keys(),
                 scale_of(options.fp8.k_scale, sequence, key_head));
  v_ = load_keys(inputs.v, options.sequences, sequence, key_head, rows_.key_first, keys(),
                 scale_of(options.fp8.v_scale, sequence, key_head));
  const AttentionScore& score = options.score;
  scale_ = score.scale != 0 ? score.scale : 1.0 / std::sqrt(static_cast<double>(head_dim_));
  if (score.alibi_slopes) {
    const ConstTensorView& slopes = score.alibi_slopes;
    const ConstTensorView row =
        slopes.rank == 2 ? slopes.select(0, slopes.dim(0) == 1 ? 0 : sequence) : slopes;
    slope_ = load_element(row.data, row.dtype, head * row.stride(0));
  }
  if (score.bias) {
    bias_ = broadcast_head(score.bias, sequence, head);
  }
  if (score.sinks) {
    has_sink_ = true;
    sink_ = load_element(score.sinks.data, score.sinks.dtype, head * score.sinks.stride(0));
  }
  if (dropout_ > 0) {
    seed_ = *static_cast<const uint64_t*>(options.dropout.seed.data);
    offset_ = options.dropout.offset ? *static_cast<const uint64_t*>(options.dropout.offset.data)
                                     : uint64_t{0};
  }
}

double ReferenceHead::raw_score(int64_t i, int64_t j) const {
  double sum = 0;
  for (int64_t d = 0; d < head_dim_; ++d) {
    sum += q(i)[d] * k(j)[d];
  }
  return scale_ * sum;
}

void ReferenceHead::scores(int64_t i, std::vector<double>& row) const {
  constexpr double kHidden = -std::numeric_limits<double>::infinity();
  row.assign(static_cast<size_t>(keys()), kHidden);
  std::vector<int32_t> kinds;  // of the row's blocks: -2 hidden, -1 full, else the partial block
  if (geometry_.outer_block > 0) {
    kinds.assign(static_cast<size_t>((keys() + geometry_.inner_block - 1) / geometry_.inner_block),
                 -2);
    const GeometryBlocks& blocks = geometry_.blocks;
    const int64_t block_row = i / geometry_.outer_block;
    for (int32_t e = blocks.offsets[block_row]; e < blocks.offsets[block_row + 1]; ++e) {
      if (static_cast<size_t>(blocks.entries[e]) < kinds.size()) {
        kinds[static_cast<size_t>(blocks.entries[e])] =
            blocks.partial != nullptr ? blocks.partial[e] : -1;
      }
    }
  }
  for (int64_t j = 0; j < keys(); ++j) {
    if (!positions_visible(geometry_, i, j)) {
      continue;
    }
    if (!kinds.empty()) {
      const int32_t kind = kinds[static_cast<size_t>(j / geometry_.inner_block)];
      if (kind == -2 || (kind >= 0 && !block_bit(geometry_, kind, i % geometry_.outer_block,
                                                 j % geometry_.inner_block))) {
        continue;
      }
    }
    double score = raw_score(i, j);
    if (softcap_ > 0) {
      score = softcap_ * std::tanh(score / softcap_);
    }
    score -= slope_ * static_cast<double>(
                          std::abs(geometry_.inner.position(j) - geometry_.outer.position(i)));
    if (bias_) {
      score += load_element(bias_.data, bias_.dtype,
                            (bias_.dim(0) == 1 ? 0 : i) * bias_.stride(0) + j * bias_.stride(1));
    }
    row[static_cast<size_t>(j)] = score;
  }
}

double ReferenceHead::softcap_slope(int64_t i, int64_t j) const {
  if (softcap_ == 0) {
    return 1;
  }
  const double t = std::tanh(raw_score(i, j) / softcap_);
  return 1 - t * t;
}

double ReferenceHead::dropout_factor(int64_t i, int64_t j) const {
  if (dropout_ == 0) {
    return 1;
  }
  const uint32_t bits = attention_dropout_bits(seed_, offset_, static_cast<uint32_t>(sequence_),
                                               static_cast<uint32_t>(head_),
                                               static_cast<uint32_t>(geometry_.outer.position(i)),
                                               static_cast<uint32_t>(geometry_.inner.position(j)));
  return bits < attention_dropout_threshold(static_cast<float>(dropout_)) ? 0 : 1 / (1 - dropout_);
}

}  // namespace flashloom
